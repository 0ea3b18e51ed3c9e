#pragma once

// Before a loop with a constant count whose arrays must live in registers.
#if defined(__clang__)
#define BSFA_UNROLL _Pragma("unroll")
#else
#define BSFA_UNROLL _Pragma("GCC unroll 16")
#endif
