#include <bit>

#include "exchange.hpp"

namespace bsfa::python {
namespace {

using Tensor = nb::dlpack::dltensor;

Device device_of(const char* name, const Tensor& tensor) {
  switch (tensor.device.device_type) {
    case nb::device::cpu::value:
      return {DeviceType::kCpu, 0};
    case nb::device::cuda::value:
      return {DeviceType::kCuda, tensor.device.device_id};
    default:
      refuse(std::string(name) + " is on a device of DLPack type " +
             std::to_string(tensor.device.device_type) + "; accepted: cpu (1), cuda (2)");
  }
}

std::string device_text(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

std::string dtype_text(nb::dlpack::dtype dtype) {
  static const char* const kNames[] = {"int",    "uint",    "float", "opaque",
                                       "bfloat", "complex", "bool"};
  return (dtype.code < 7 ? kNames[dtype.code] : "type " + std::to_string(dtype.code)) +
         std::to_string(dtype.bits);
}

DType float_type(const char* name, const Tensor& tensor) {
  const nb::dlpack::dtype dtype = tensor.dtype;
  const auto is = [&](nb::dlpack::dtype_code code, int bits) {
    return dtype.code == static_cast<std::uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(nb::dlpack::dtype_code::Float, 32)) return DType::kFloat32;
  if (is(nb::dlpack::dtype_code::Float, 16)) return DType::kFloat16;
  if (is(nb::dlpack::dtype_code::Bfloat, 16)) return DType::kBFloat16;
  refuse(std::string(name) + " has dtype " + dtype_text(dtype) +
         "; accepted: float32, float16, bfloat16");
}

void check_rank(const char* name, const Tensor& tensor, int rank) {
  if (tensor.ndim != rank) {
    refuse(std::string(name) + " has " + std::to_string(tensor.ndim) + " axes; expected " +
           std::to_string(rank));
  }
}

void* data_of(const Tensor& tensor) {
  return tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
}

// Shape and strides; an array without strides is dense.
template <typename View>
void set_axes(const Tensor& tensor, View* view) {
  std::int64_t step = 1;
  for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
    view->shape[axis] = tensor.shape[axis];
    view->stride[axis] = tensor.strides != nullptr ? tensor.strides[axis] : step;
    step *= tensor.shape[axis];
  }
}

template <typename Pointer>
BasicTensorView<Pointer> operand_view(const char* name, const Tensor& tensor) {
  BasicTensorView<Pointer> view;
  view.data = data_of(tensor);
  view.dtype = float_type(name, tensor);
  check_rank(name, tensor, 4);
  set_axes(tensor, &view);
  return view;
}

template <typename T, int kRank>
StridedView<T, kRank> typed_view(const char* name, const Tensor& tensor) {
  constexpr nb::dlpack::dtype kExpected = nb::dtype<std::remove_const_t<T>>();
  if (!(tensor.dtype == kExpected)) {
    refuse(std::string(name) + " has dtype " + dtype_text(tensor.dtype) + "; expected " +
           dtype_text(kExpected));
  }
  check_rank(name, tensor, kRank);
  StridedView<T, kRank> view;
  view.data = static_cast<T*>(data_of(tensor));
  set_axes(tensor, &view);
  return view;
}

// What an ndarray describes, as nanobind has it.
template <typename Array>
Tensor described(const Array& array) {
  Tensor tensor;
  tensor.data = const_cast<void*>(static_cast<const void*>(array.data()));
  tensor.device = {array.device_type(), array.device_id()};
  tensor.ndim = static_cast<std::int32_t>(array.ndim());
  tensor.dtype = array.dtype();
  tensor.shape = const_cast<std::int64_t*>(array.shape_ptr());
  tensor.strides = const_cast<std::int64_t*>(array.stride_ptr());
  return tensor;
}

// Whether an array says that the bytes of its elements stand the other way round than here. Neither
// DLPack nor the buffer protocol, as nanobind reads it, has a word for such arrays.
bool has_other_byte_order(nb::handle value) {
  const nb::object dtype = nb::getattr(value, "dtype", nb::none());
  if (nb::getattr(dtype, "isnative", nb::none()).is(nb::handle(Py_False))) return true;
  if (PyObject_CheckBuffer(value.ptr()) == 0) return false;
  Py_buffer buffer;
  if (PyObject_GetBuffer(value.ptr(), &buffer, PyBUF_FORMAT | PyBUF_STRIDES) != 0) {
    PyErr_Clear();
    return false;
  }
  const std::string format = buffer.format != nullptr ? buffer.format : "";
  PyBuffer_Release(&buffer);
  constexpr bool kLittle = std::endian::native == std::endian::little;
  return !format.empty() && (format[0] == (kLittle ? '>' : '<') || (kLittle && format[0] == '!'));
}

[[noreturn]] void refuse_object(const char* name, nb::handle value, const char* expected) {
  if (has_other_byte_order(value)) {
    refuse(std::string(name) + " has elements of the other byte order than this machine's; " +
           "accepted: native order (numpy: array.astype(array.dtype.newbyteorder('=')))");
  }
  const std::string type = nb::cast<std::string>(value.type().attr("__name__"));
  throw nb::type_error(
      (std::string(name) + " is of type " + type + "; expected " + expected).c_str());
}

}  // namespace

void refuse(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

void Borrow::check_device(const char* name, const Tensor& tensor) {
  const Device device = device_of(name, tensor);
  if (!device_) {
    device_ = device;
    first_name_ = name;
  } else if (!(*device_ == device)) {
    refuse(std::string(name) + " is on " + device_text(device) + "; " + first_name_ + " is on " +
           device_text(*device_));
  }
}

Tensor Borrow::read(const char* name, nb::handle value) {
  Tensor tensor;
  if (!read_by_exchange(value, &tensor)) {
    auto array = std::make_unique<Reader>();
    if (!nb::try_cast(value, *array)) refuse_object(name, value, "a tensor (DLPack or buffer)");
    tensor = described(*readers_.emplace_back(std::move(array)));
  }
  check_device(name, tensor);
  return tensor;
}

Tensor Borrow::write(const char* name, nb::handle value) {
  Tensor tensor;
  if (!read_by_exchange(value, &tensor)) {
    auto array = std::make_unique<Writer>();
    if (!nb::try_cast(value, *array)) {
      refuse_object(name, value, "a writable tensor (DLPack or buffer)");
    }
    tensor = described(*writers_.emplace_back(std::move(array)));
  }
  check_device(name, tensor);
  return tensor;
}

TensorView Borrow::operand(const char* name, nb::handle value) {
  return operand_view<const void*>(name, read(name, value));
}

OutputView Borrow::output_operand(const char* name, nb::handle value) {
  return operand_view<void*>(name, write(name, value));
}

template <typename T, int kRank>
StridedView<T, kRank> Borrow::view(const char* name, nb::handle value) {
  if (value.is_none()) return {};
  return typed_view<T, kRank>(name, std::is_const_v<T> ? read(name, value) : write(name, value));
}

StridedView<const float, 3> Borrow::table(const char* name, nb::handle value, bool* per_sequence) {
  const Tensor tensor = read(name, value);  // once: a DLPack capsule can be taken once
  *per_sequence = tensor.ndim == 3;
  if (*per_sequence) return typed_view<const float, 3>(name, tensor);
  const auto one = typed_view<const float, 2>(name, tensor);
  return {one.data, {1, one.shape[0], one.shape[1]}, {0, one.stride[0], one.stride[1]}};
}

template <typename T>
T* Borrow::vector(const char* name, nb::handle value, std::int64_t* length) {
  const StridedView<T, 1> result = view<T, 1>(name, value);
  if (value.is_none()) return nullptr;
  if (result.shape[0] > 1 && result.stride[0] != 1) {
    refuse(std::string(name) + " has stride " + std::to_string(result.stride[0]) +
           "; expected a contiguous vector");
  }
  *length = result.shape[0];
  return result.data;
}

template StridedView<float, 3> Borrow::view(const char*, nb::handle);
template StridedView<float, 4> Borrow::view(const char*, nb::handle);
template StridedView<const float, 3> Borrow::view(const char*, nb::handle);
template StridedView<const float, 4> Borrow::view(const char*, nb::handle);
template StridedView<const std::int32_t, 2> Borrow::view(const char*, nb::handle);
template StridedView<std::int64_t, 2> Borrow::view(const char*, nb::handle);
template StridedView<std::uint8_t, 4> Borrow::view(const char*, nb::handle);
template const std::int32_t* Borrow::vector(const char*, nb::handle, std::int64_t*);
template const float* Borrow::vector(const char*, nb::handle, std::int64_t*);
template std::uint8_t* Borrow::vector(const char*, nb::handle, std::int64_t*);

FloatArray make_array(std::vector<float> values, const std::vector<std::size_t>& shape) {
  auto* owned = new std::vector<float>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
  return FloatArray(owned->data(), shape.size(), shape.data(), owner);
}

BlockShape block_from(std::pair<std::int64_t, std::int64_t> block) {
  return {block.first, block.second};
}

}  // namespace bsfa::python
