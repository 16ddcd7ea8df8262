#include "exchange.h"

namespace nb = nanobind;

namespace tessera::python {

const ExchangeApi* exchange_api(nb::handle type) {
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
    return nullptr;
  }
  const auto* header =
      static_cast<const ExchangeApi::Header*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (header != nullptr && header->major > 1) {
    header = header->previous;
  }
  const auto* api = reinterpret_cast<const ExchangeApi*>(header);
  return api == nullptr || api->header.major != 1 || api->tensor_from_object == nullptr ? nullptr : api;
}

}  // namespace tessera::python
