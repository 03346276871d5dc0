// What TensorRT's headers use of CUDA's runtime header: handles. No CUDA toolkit is needed to build against them.
#pragma once

struct CUstream_st;
struct CUevent_st;
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
