#pragma once

#include <string>
#include <vector>

#include "bsfa/export.hpp"

namespace bsfa {

// A text to calibrate on.
struct TextSample {
  std::string name;  // what messages call it: the file, and where in it
  std::string text;  // UTF-8 without zero bytes
};

// The texts of files and of folders, in whose files (of the folder itself, sorted by name, without
// those whose names begin with a dot) they are looked for. By suffix, in upper or lower case:
//
//   none, .txt, .text, .md, .rst   plain text: one sample a file
//   .json                          a list of samples
//   .jsonl, .ndjson                a sample a line; empty lines count nothing
//
// A sample in JSON is a string, or an object with the string "input_text" (the published format;
// its other fields are ignored). Throws Error naming the file and, in it, the sample or line:
// another suffix, text that is not UTF-8 or holds zero bytes, JSON that is something else.
BSFA_API std::vector<TextSample> read_samples(const std::vector<std::string>& paths);

}  // namespace bsfa
