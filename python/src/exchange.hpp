#pragma once

#include "binding.hpp"

namespace bsfa::python {

// Reads a tensor through DLPack's C exchange API (DLPack 1.3), which frameworks offer on their
// tensor type as `__dlpack_c_exchange_api__`: no Python object is made and no stream waits for
// another. The result borrows from `value`. False, without a Python error, if the type offers none
// or the tensor cannot be described so.
bool read_by_exchange(nb::handle value, nb::dlpack::dltensor* tensor);

}  // namespace bsfa::python
