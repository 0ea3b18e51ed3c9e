#include "source_tree.hpp"

#include <stdexcept>

namespace bsfa {

SourceTree source_tree() {
  return {
#include "source_tree_state.inc"
  };
}

std::string commit_for_results(const SourceTree& tree, bool allow_changes) {
  if (tree.commit.empty()) {
    throw std::runtime_error(
        "this program was built outside a clone of the repository: its results can name no commit");
  }
  if (tree.changed && !allow_changes) {
    throw std::runtime_error("this program was built from commit " + tree.commit +
                             " with changes that no commit names: commit them and build again, or "
                             "give --dirty, which marks the record");
  }
  return tree.commit;
}

}  // namespace bsfa
