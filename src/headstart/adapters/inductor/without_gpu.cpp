// Makes torch accept "cuda" as a device name where there is no GPU: a device guard that owns no device, and hooks. A
// build with CUDA (HAS_CUDA) has made hooks of its own by then, which count the devices that the driver sees.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
namespace {
thread_local DeviceIndex current = 0;
struct Guard final : impl::DeviceGuardImplInterface {
  Guard() = default;
  Guard(DeviceType) {}
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device d) const override { Device old = getDevice(); current = d.index(); return old; }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  void setDevice(Device d) const override { current = d.index(); }
  void uncheckedSetDevice(Device d) const noexcept override { current = d.index(); }
  Stream getStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
  Stream getDefaultStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
  Stream exchangeStream(Stream s) const override { return s; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}  // namespace
namespace at {
struct CUDAHooks final : CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  DeviceIndex current_device() const override { return current; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
};
#ifdef HAS_CUDA
// torch holds its hooks in a static for good. They have no members, so that the object may become one of this class.
const bool replaced = [] {
  static const CUDAHooks ours{CUDAHooksArgs{}};
  const CUDAHooksInterface& theirs = at::detail::getCUDAHooks();
  __builtin_memcpy(const_cast<void*>(static_cast<const void*>(&theirs)), static_cast<const void*>(&ours), sizeof(void*));
  return true;
}();
#else
REGISTER_CUDA_HOOKS(CUDAHooks)
#endif
}  // namespace at
