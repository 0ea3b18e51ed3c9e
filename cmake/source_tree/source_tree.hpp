#pragma once

#include <string>

// Where the numbers of a results file come from. Every program and module that writes one says so
// with these, the Python package too (`bsfa.provenance`).

namespace bsfa {

struct SourceTree {
  std::string commit;  // 40 hexadecimal digits; empty: the source was no clone of the repository
  bool changed = false;  // files of the commit had been changed
};

// What the calling program was built from.
SourceTree source_tree();

// The commit for a results file. Throws std::runtime_error, which says what can be done, if there is
// none or if `tree` had changes, unless these are allowed: then the record has to say `dirty`.
std::string commit_for_results(const SourceTree& tree, bool allow_changes);

}  // namespace bsfa
