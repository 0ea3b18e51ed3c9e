#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "bsfa/backends.hpp"
#include "run_program.hpp"
#include "source_tree.hpp"

namespace bsfa::test {
namespace {

TEST(CliInfo, NamesEveryBackend) {
  const ProgramRun text = run_program("info");
  EXPECT_EQ(text.exit_code, 0) << text.err;
  const ProgramRun json = run_program("info --json");
  ASSERT_EQ(json.exit_code, 0) << json.err;
  const auto parsed = nlohmann::json::parse(json.out);
  EXPECT_EQ(parsed["version"], version());
  ASSERT_EQ(parsed["backends"].size(), backends().size());
  for (std::size_t n = 0; n < backends().size(); ++n) {
    EXPECT_EQ(parsed["backends"][n]["name"], backends()[n].name);
    EXPECT_EQ(parsed["backends"][n]["available"], backends()[n].available);
    EXPECT_NE(text.out.find(backends()[n].name), std::string::npos);
  }
  EXPECT_TRUE(parsed["instruction_sets"].is_object());
  EXPECT_EQ(parsed["commit"], source_tree().commit);
  EXPECT_EQ(parsed.contains("dirty"), source_tree().changed);
  EXPECT_FALSE(parsed["build"]["compiler"].get<std::string>().empty());
}

}  // namespace
}  // namespace bsfa::test
