// How tests look into the fake TensorRT-RTX: what it did about kernels, ever.
#pragma once

extern "C" {

struct FakeKernels {
  int lazy, fixed;  // contexts made
  int compiled;     // kernels of a shape, which a cache has the next context find
};

FakeKernels fake_kernels();
}
