// What the binding needs of CUDA.

#pragma once

enum cudaError_t { cudaSuccess = 0, cudaErrorUnknown = 999 };
extern "C" cudaError_t cudaGetLastError();
