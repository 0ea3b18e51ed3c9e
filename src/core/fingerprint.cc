#include "core/fingerprint.hpp"

#include <algorithm>
#include <cstddef>

#include "bsfa/text.hpp"
#include "core/sha256.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

constexpr std::size_t kDigits = 32;

bool all_in(std::string_view text, std::string_view characters) {
  return !text.empty() && text.find_first_not_of(characters) == std::string_view::npos;
}

bool is_source(std::string_view text) {
  return text.size() <= 16 && all_in(text, "abcdefghijklmnopqrstuvwxyz0123456789");
}

std::string_view source_of(std::string_view fingerprint) {
  return fingerprint.substr(0, fingerprint.find(':'));
}

}  // namespace

Status check_fingerprint(const std::string& fingerprint) {
  if (fingerprint.empty()) return {};
  const std::string_view source = source_of(fingerprint);
  if (is_source(source) && fingerprint.size() > source.size() &&
      fingerprint.size() - source.size() - 1 == kDigits &&
      all_in(std::string_view(fingerprint).substr(source.size() + 1), "0123456789abcdef")) {
    return {};
  }
  return invalid_argument("fingerprint is ", quote(fingerprint), "; accepted: <source>:<", kDigits,
                          " hexadecimal digits>, as weight_fingerprint gives it, or nothing");
}

bool comparable_fingerprints(const std::string& a, const std::string& b) {
  return !a.empty() && !b.empty() && source_of(a) == source_of(b);
}

std::string weight_fingerprint(const std::string& source, std::vector<WeightSample> tensors) {
  if (!is_source(source)) {
    throw Error(invalid_argument("source is ", quote(source),
                                 "; accepted: 1 to 16 lower-case letters and digits"));
  }
  if (tensors.empty()) throw Error(invalid_argument("tensors is empty; expected at least one"));
  std::sort(tensors.begin(), tensors.end(),
            [](const WeightSample& a, const WeightSample& b) { return a.name < b.name; });
  Sha256 hash;
  for (const WeightSample& tensor : tensors) {
    // Lengths in front, so that no two lists of tensors give the same bytes.
    hash.update(text(tensor.name.size(), " ", tensor.name, " ", tensor.shape.size()));
    for (const std::int64_t extent : tensor.shape) hash.update(text(" ", extent));
    hash.update(text(" ", tensor.bytes.size(), "\n"));
    hash.update(tensor.bytes);
  }
  return source + ":" + hash.finish().substr(0, kDigits);
}

}  // namespace bsfa
