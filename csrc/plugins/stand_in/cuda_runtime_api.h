// What TensorRT's headers name of the CUDA runtime, so that the plugins compile without a CUDA toolkit.
#pragma once

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
