#include "binding.hpp"

namespace bsfa::python {
namespace {

template <typename Array>
Device device_of(const char* name, const Array& array) {
  switch (array.device_type()) {
    case nb::device::cpu::value:
      return {DeviceType::kCpu, 0};
    case nb::device::cuda::value:
      return {DeviceType::kCuda, array.device_id()};
    default:
      refuse(std::string(name) + " is on a device of DLPack type " +
             std::to_string(array.device_type()) + "; accepted: cpu (1), cuda (2)");
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

template <typename Array>
DType float_type(const char* name, const Array& array) {
  const nb::dlpack::dtype dtype = array.dtype();
  const auto is = [&](nb::dlpack::dtype_code code, int bits) {
    return dtype.code == static_cast<std::uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(nb::dlpack::dtype_code::Float, 32)) return DType::kFloat32;
  if (is(nb::dlpack::dtype_code::Float, 16)) return DType::kFloat16;
  if (is(nb::dlpack::dtype_code::Bfloat, 16)) return DType::kBFloat16;
  refuse(std::string(name) + " has dtype " + dtype_text(dtype) +
         "; accepted: float32, float16, bfloat16");
}

template <typename Array>
void check_rank(const char* name, const Array& array, std::size_t rank) {
  if (array.ndim() != rank) {
    refuse(std::string(name) + " has " + std::to_string(array.ndim()) + " axes; expected " +
           std::to_string(rank));
  }
}

template <typename Pointer, typename Array>
BasicTensorView<Pointer> operand_view(const char* name, const Array& array, Pointer data) {
  BasicTensorView<Pointer> view;
  view.data = data;
  view.dtype = float_type(name, array);
  check_rank(name, array, 4);
  for (int axis = 0; axis < 4; ++axis) {
    view.shape[axis] = static_cast<std::int64_t>(array.shape(axis));
    view.stride[axis] = array.stride(axis);
  }
  return view;
}

template <typename T, int kRank, typename Array>
StridedView<T, kRank> typed_view(const char* name, const Array& array, T* data) {
  constexpr nb::dlpack::dtype kExpected = nb::dtype<std::remove_const_t<T>>();
  if (!(array.dtype() == kExpected)) {
    refuse(std::string(name) + " has dtype " + dtype_text(array.dtype()) + "; expected " +
           dtype_text(kExpected));
  }
  check_rank(name, array, kRank);
  StridedView<T, kRank> view;
  view.data = data;
  for (int axis = 0; axis < kRank; ++axis) {
    view.shape[axis] = static_cast<std::int64_t>(array.shape(axis));
    view.stride[axis] = array.stride(axis);
  }
  return view;
}

[[noreturn]] void refuse_object(const char* name, nb::handle value, const char* expected) {
  const std::string type = nb::cast<std::string>(value.type().attr("__name__"));
  throw nb::type_error(
      (std::string(name) + " is of type " + type + "; expected " + expected).c_str());
}

}  // namespace

void refuse(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

template <typename Array>
void Borrow::check_device(const char* name, const Array& array) {
  const Device device = device_of(name, array);
  if (!device_) {
    device_ = device;
    first_name_ = name;
  } else if (!(*device_ == device)) {
    refuse(std::string(name) + " is on " + device_text(device) + "; " + first_name_ + " is on " +
           device_text(*device_));
  }
}

const Borrow::Reader& Borrow::read(const char* name, nb::handle value) {
  auto array = std::make_unique<Reader>();
  if (!nb::try_cast(value, *array)) refuse_object(name, value, "a tensor (DLPack or buffer)");
  check_device(name, *array);
  return *readers_.emplace_back(std::move(array));
}

const Borrow::Writer& Borrow::write(const char* name, nb::handle value) {
  auto array = std::make_unique<Writer>();
  if (!nb::try_cast(value, *array)) {
    refuse_object(name, value, "a writable tensor (DLPack or buffer)");
  }
  check_device(name, *array);
  return *writers_.emplace_back(std::move(array));
}

TensorView Borrow::operand(const char* name, nb::handle value) {
  const Reader& array = read(name, value);
  return operand_view<const void*>(name, array, array.data());
}

OutputView Borrow::output_operand(const char* name, nb::handle value) {
  const Writer& array = write(name, value);
  return operand_view<void*>(name, array, array.data());
}

template <typename T, int kRank>
StridedView<T, kRank> Borrow::view(const char* name, nb::handle value) {
  if (value.is_none()) return {};
  if constexpr (std::is_const_v<T>) {
    const Reader& array = read(name, value);
    return typed_view<T, kRank>(name, array, static_cast<T*>(array.data()));
  } else {
    const Writer& array = write(name, value);
    return typed_view<T, kRank>(name, array, static_cast<T*>(array.data()));
  }
}

StridedView<const float, 3> Borrow::table(const char* name, nb::handle value, bool* per_sequence) {
  const Reader& array = read(name, value);  // once: a DLPack capsule can be taken once
  const auto* data = static_cast<const float*>(array.data());
  *per_sequence = array.ndim() == 3;
  if (*per_sequence) return typed_view<const float, 3>(name, array, data);
  const auto one = typed_view<const float, 2>(name, array, data);
  return {data, {1, one.shape[0], one.shape[1]}, {0, one.stride[0], one.stride[1]}};
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
