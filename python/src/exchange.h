// DLPack's C exchange interface: functions that a framework hangs on its type of tensors, so that reading one takes no
// Python call. torch has it since 2.10.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>

namespace tessera::python {

// Laid out as DLPackExchangeAPI in dlpack.h; what is not called here is a pointer.
struct ExchangeApi {
  struct Header {
    std::uint32_t major, minor;
    const Header* previous;  // of an older major version
  };
  Header header;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  // Describes a tensor that stays its object's; 0, or -1 with a Python exception. May be null.
  int (*tensor_from_object)(void* object, nanobind::dlpack::dltensor* tensor);
  int (*current_stream)(int device_type, std::int32_t device, void** stream);
};

// That of tensors of `type`; null where it has none, or none of version 1.
const ExchangeApi* exchange_api(nanobind::handle type);

}  // namespace tessera::python
