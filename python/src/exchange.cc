#include "exchange.hpp"

namespace bsfa::python {
namespace {

// The layout of the API, from its specification: a header with the version and a link to an older
// one, then functions. Only one of them is used here.
struct ExchangeHeader {
  std::uint32_t major;
  std::uint32_t minor;
  ExchangeHeader* older;
};
struct ExchangeApi {
  ExchangeHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  int (*dltensor_from_object)(void* object, nb::dlpack::dltensor* tensor);  // 0: done
  void* current_work_stream;
};
constexpr std::uint32_t kMajor = 1;

// What a type offers, or null.
const ExchangeApi* api_of(PyTypeObject* type) {
  PyObject* capsule =
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  void* found = nullptr;
  if (capsule != nullptr && PyCapsule_CheckExact(capsule)) {
    found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  }
  Py_XDECREF(capsule);
  PyErr_Clear();
  auto* header = static_cast<ExchangeHeader*>(found);
  while (header != nullptr && header->major != kMajor) header = header->older;
  return reinterpret_cast<const ExchangeApi*>(header);
}

}  // namespace

bool read_by_exchange(nb::handle value, nb::dlpack::dltensor* tensor) {
  // The tensors of a call are mostly of one type: the last one is remembered, and kept alive, so
  // that another type cannot come to lie at its address. Guarded by the GIL.
  static PyTypeObject* last_type = nullptr;
  static const ExchangeApi* last_api = nullptr;
  PyTypeObject* const type = Py_TYPE(value.ptr());
  if (type != last_type) {
    const ExchangeApi* const api = api_of(type);
    Py_INCREF(type);
    Py_XDECREF(last_type);
    last_type = type;
    last_api = api;
  }
  if (last_api == nullptr) return false;
  if (last_api->dltensor_from_object(value.ptr(), tensor) == 0) return true;
  PyErr_Clear();
  return false;
}

}  // namespace bsfa::python
