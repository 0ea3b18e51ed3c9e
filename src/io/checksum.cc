#include "io/checksum.hpp"

#include <algorithm>

#include "core/sha256.hpp"
#include "io/text.hpp"

namespace bsfa {
namespace {

constexpr const char* kField = "checksum";
constexpr const char* kAlgorithm = "sha256:";

// Sorted. What version 1 of the formats covers, whatever fields are added to it.
constexpr const char* kCovered[] = {
    "budgets", "fingerprint",   "format",   "kv_block", "max_seqlen",
    "model",   "num_samples",   "producer", "q_block",  "recommended_budget",
    "samples", "softmax_scale", "version"};

void hash_metadata(const StringMap& metadata, Sha256* hash) {
  for (const char* name : kCovered) {
    const auto found = metadata.find(name);
    if (found == metadata.end()) continue;
    hash->update(name);
    hash->update("\0", 1);
    hash->update(found->second);
    hash->update("\0", 1);
  }
}

}  // namespace

void add_checksum(StringMap* metadata, const std::vector<TensorToWrite>& tensors) {
  Sha256 hash;
  hash_metadata(*metadata, &hash);
  for (const TensorToWrite& tensor : tensors) hash.update(tensor.bytes);
  (*metadata)[kField] = kAlgorithm + hash.finish();
}

Status verify_checksum(const std::string& file, const SafetensorsReader& reader) {
  const auto stated = reader.metadata().find(kField);
  if (stated == reader.metadata().end()) return {};  // made by others, or before there was one
  Sha256 hash;
  hash_metadata(reader.metadata(), &hash);
  std::string chunk;
  for (std::uint64_t offset = 0; offset < reader.data_size(); offset += chunk.size()) {
    constexpr std::uint64_t kChunk = std::uint64_t{1} << 20;
    chunk.resize(std::min(kChunk, reader.data_size() - offset));
    BSFA_RETURN_IF_ERROR(reader.read_data(offset, chunk.data(), chunk.size()));
    hash.update(chunk);
  }
  const std::string found = kAlgorithm + hash.finish();
  if (stated->second == found) return {};
  return format_error(file, ": metadata field 'checksum' is ",
                      quote(stated->second, 2 * kLongestQuote), "; the file's content gives ",
                      found,
                      ": it is damaged, or was changed by a program that left the field as it was");
}

}  // namespace bsfa
