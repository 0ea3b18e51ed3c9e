#include "bsfa/samples.hpp"

#include <gtest/gtest.h>

#include "file_bytes.hpp"

namespace bsfa::test {
namespace {

class Samples : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& content) {
    write_bytes(directory_ / name, content);
    return directory_ / name;
  }
  std::vector<std::string> texts(const std::string& name, const std::string& content) {
    std::vector<std::string> result;
    for (const TextSample& sample : read_samples({write(name, content)})) {
      result.push_back(sample.text);
    }
    return result;
  }
  void refused(const std::string& name, const std::string& content, const std::string& where,
               const std::string& what) {
    const std::string path = write(name, content);
    const Status status = error_of([&] { read_samples({path}); });
    EXPECT_EQ(status.code, ErrorCode::kFormat) << name << " " << content.substr(0, 80);
    EXPECT_EQ(status.message.rfind(path + where + ": ", 0), 0u) << status.message;
    EXPECT_NE(status.message.find(what), std::string::npos) << status.message;
    EXPECT_LT(status.message.size(), 600u);
  }

  using Texts = std::vector<std::string>;
  TemporaryDirectory directory_;
};

TEST_F(Samples, APlainTextIsOneSample) {
  for (const char* name : {"a", "a.txt", "b.TXT", "c.text", "d.Md", "e.rst"}) {
    EXPECT_EQ(texts(name, "one\ntwo \xc3\xa9\n"), Texts{"one\ntwo \xc3\xa9\n"}) << name;
  }
  EXPECT_EQ(texts("mark.txt", "\xef\xbb\xbfone"), Texts{"one"});
  const std::vector<TextSample> samples = read_samples({directory_ / "a"});
  EXPECT_EQ(samples[0].name, directory_ / "a");
}

TEST_F(Samples, JsonListsHoldObjectsAndStrings) {
  const std::string list = R"( [{"task_name":"t","input_text":"first","deep":[{"input_text":5}]},
    "second", {"input_text":"th\u0069rd", "number": 1234567890123456789012345678901234567890}] )";
  const Texts expected{"first", "second", "third"};
  for (const char* name : {"a.json", "b.JSON", "c.Json"}) {
    EXPECT_EQ(texts(name, list), expected) << name;
  }
  EXPECT_EQ(texts("empty.json", "[]"), Texts{});
  EXPECT_EQ(read_samples({directory_ / "a.json"})[2].name, directory_ / "a.json[2]");
}

TEST_F(Samples, JsonLinesHoldOneEach) {
  const std::string lines =
      "{\"input_text\":\"first\",\"task_name\":\"t\"}\n\n  "
      "\r\n\"second\"\r\n{\"input_text\":\"3\"}";
  for (const char* name : {"a.jsonl", "b.JSONL", "c.ndjson"}) {
    EXPECT_EQ(texts(name, lines), (Texts{"first", "second", "3"})) << name;
  }
  EXPECT_EQ(read_samples({directory_ / "a.jsonl"})[1].name, directory_ / "a.jsonl:4");
  EXPECT_EQ(texts("empty.jsonl", ""), Texts{});
}

TEST_F(Samples, FoldersAreReadThroughInOrder) {
  write("b.txt", "2");
  write("a.jsonl", "\"1\"");
  write(".hidden.pdf", "x");
  std::filesystem::create_directory(directory_ / "folder");
  write("folder/inner.txt", "not this");
  Texts found;
  for (const TextSample& sample : read_samples({directory_ / "", directory_ / "b.txt"})) {
    found.push_back(sample.text);
  }
  EXPECT_EQ(found, (Texts{"1", "2", "2"}));
}

TEST_F(Samples, WhatIsNotKnownIsRefused) {
  for (const char* name : {"a.csv", "a.parquet", "a.json.gz", "a.yaml", "a.jsonlines"}) {
    refused(name, "text", "", "the suffix '");
  }
  refused("a.txt", "abc\xff", "", "not UTF-8 text (byte 3)");
  refused("a.txt", std::string("ab\0c", 4), "", "a NUL at byte 2");
  refused("a.json", "\xff", "", "not UTF-8");
  refused("a.json", R"(["a\u0000b"])", "[0]", "a NUL");
  const Status missing = error_of([&] { read_samples({directory_ / "none.txt"}); });
  EXPECT_EQ(missing.code, ErrorCode::kIo);
  EXPECT_NE(missing.message.find("none.txt: cannot be opened"), std::string::npos);
}

TEST_F(Samples, JsonOfAnotherShapeIsRefused) {
  refused("a.json", "", "", "not JSON");
  refused("a.json", "{", "", "expected a list");
  refused("a.json", "[1", "[0]", "is a number");
  refused("a.json", R"(["a")", "", "not JSON: at byte");
  refused("a.json", "{}", "", "holds an object; expected a list of samples");
  refused("a.json", "7", "", "holds a number");
  refused("a.json", R"("text")", "", "holds a string");
  refused("a.json", R"(["ok", {"task_name": "t"}])", "[1]", "has no string \"input_text\"");
  refused("a.json", R"([{"input_text": 5}])", "[0]", "\"input_text\" but a number");
  refused("a.json", R"([{"input_text": null}])", "[0]", "\"input_text\" but null");
  refused("a.json", R"([{"input_text": {"a": "b"}}])", "[0]", "an object as \"input_text\"");
  refused("a.json", R"([{"input_text": ["b"]}])", "[0]", "a list as \"input_text\"");
  refused("a.json", R"([{"input_text": "a", "input_text": "b"}])", "[0]", "twice");
  refused("a.json", R"([["a"]])", "[0]", "is a list");
  refused("a.json", R"(["a"] ["b"])", "", "not JSON");
  refused("a.jsonl", "\"a\"\n{\"text\": \"b\"}\n", ":2", "has no string \"input_text\"");
  refused("a.jsonl", "\"a\"\nplain text\n", ":2", "not JSON");
  refused("a.jsonl", "[\"a\"]\n", ":1", "is a list");
  refused("a.jsonl", "{\"input_text\":\n\"a\"}", ":1", "not JSON");
}

TEST_F(Samples, DepthAndSizeAreNoTrouble) {
  const std::string deep(200'000, '[');
  refused("a.json", deep, "[0]", "is a list");
  refused("a.json", "[{\"x\": " + deep, "", "not JSON");
  refused("a.jsonl", deep, ":1", "is a list");
  const std::string closed = deep + std::string(200'000, ']');
  EXPECT_EQ(texts("b.json", "[{\"x\": " + closed + ", \"input_text\": \"a\"}]"), Texts{"a"});
  const std::string digits(5000, '7');
  EXPECT_EQ(texts("b.json", R"([{"x": [1, -2.5, true], "input_text": "a"}])"), Texts{"a"});
  refused("a.json", "[" + digits + "]", "", "");
  refused("a.json", "[{\"input_text\": " + digits + "}]", "", "");
}

}  // namespace
}  // namespace bsfa::test
