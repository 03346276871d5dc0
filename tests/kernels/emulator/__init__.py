"""A thread block of an NVIDIA GPU on the CPU, for tests: what Triton compiled a kernel to (PTX) is run, not its source.

Triton's interpreter runs the source. What it cannot show is here: layouts of tensor-core operands and swizzles, copies
and products that run beside the program, bytes outside of an array or of shared memory, a missing barrier or fence, and
assembly written by hand. Only what `segmenter_kernels` compiles to for sm_80, 86, 89 and 90 is known; anything
else raises `NotKnownError`. Races in global memory or within a warp are not seen, and float8 products are summed in
float32.
"""
