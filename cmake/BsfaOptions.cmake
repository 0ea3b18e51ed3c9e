add_library(bsfa_warnings INTERFACE)
target_compile_options(bsfa_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wno-unused-parameter>)
# An enumerator that a switch does not name is an error: a policy or type that a part of the library
# does not know must be refused by it, never fall through.
# The front end of nvcc has no such diagnosis for device code: there, a choice by an enumerator is
# made in a function that is compiled for the host too.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Werror=switch>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Werror=switch>)
# The same score must come out of the same rows whatever else is computed beside it, so the compiler
# may not decide per call site whether a product and a sum become one rounding.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)

if(BSFA_SANITIZE)
  list(JOIN BSFA_SANITIZE "," sanitizers)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${sanitizers}>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>)
  add_link_options(-fsanitize=${sanitizers})
endif()

if(NOT BSFA_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "BSFA_CUDA is '${BSFA_CUDA}'; accepted: auto, on, off")
endif()
