#include "source_tree.hpp"

#include <gtest/gtest.h>

#include <stdexcept>

namespace bsfa {
namespace {

const std::string kCommit(40, 'a');

std::string refusal(const SourceTree& tree, bool allow_changes) {
  try {
    commit_for_results(tree, allow_changes);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(SourceTree, ResultsNameTheCommitOfAnUnchangedTree) {
  EXPECT_EQ(commit_for_results({kCommit, false}, false), kCommit);
}

TEST(SourceTree, ChangesAreRefusedUnlessTheRecordSaysSo) {
  const std::string message = refusal({kCommit, true}, false);
  EXPECT_NE(message.find(kCommit), std::string::npos) << message;
  EXPECT_NE(message.find("--dirty"), std::string::npos) << message;
  EXPECT_EQ(commit_for_results({kCommit, true}, true), kCommit);
}

TEST(SourceTree, SourceWithoutACommitIsRefusedAlways) {
  EXPECT_NE(refusal({"", false}, false).find("no commit"), std::string::npos);
  EXPECT_NE(refusal({"", true}, true).find("no commit"), std::string::npos);
}

TEST(SourceTree, ThisBuildKnowsWhatItIsOf) {
  const SourceTree tree = source_tree();
  EXPECT_TRUE(tree.commit.empty() || tree.commit.size() == 40) << tree.commit;
  EXPECT_EQ(tree.commit.find_first_not_of("0123456789abcdef"), std::string::npos) << tree.commit;
}

}  // namespace
}  // namespace bsfa
