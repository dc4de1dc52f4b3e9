// The binding over the emulated kernels, for tensors on the CPU: it is told that these are on a GPU,
// and what would speak to a driver does nothing.

#include <Python.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "device.h"
#include "launch.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return 0;
}
EXPORT AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }
EXPORT AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
EXPORT int32_t aoti_torch_device_type_cuda() { return aoti_torch_device_type_cpu(); }
EXPORT cudaError_t cudaGetLastError() {
  return emulation::error.empty() ? cudaSuccess : cudaErrorUnknown;
}
EXPORT AOTITorchError torch_c10_cuda_check_msg(
    int32_t status, const char*, const char*, uint32_t, bool, char** message) {
  *message = status ? &emulation::error[0] : nullptr;
  return 0;
}
EXPORT void torch_c10_cuda_free_error_msg(char*) {}

namespace {
const bool unchecked = emulation::checking = false;
}

#define CUDA CPU
#include "../../../projects/isda/ops/csrc/cuda/binding.cpp"
