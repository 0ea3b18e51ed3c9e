#pragma once

#if defined(__has_feature)
#define BSFA_HAS_FEATURE(feature) __has_feature(feature)
#else
#define BSFA_HAS_FEATURE(feature) 0
#endif

namespace bsfa::testing {

// Whether this build is instrumented: long sweeps then take fewer steps.
#if defined(__SANITIZE_THREAD__) || BSFA_HAS_FEATURE(thread_sanitizer)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

#if defined(__SANITIZE_ADDRESS__) || BSFA_HAS_FEATURE(address_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = kThreadSanitizer;
#endif

}  // namespace bsfa::testing
