// SPDX-License-Identifier: Apache-2.0
#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "tests/support/command.h"
#include "tests/support/files.h"

namespace gradus::model {
namespace {

using test::read_file;
using test::write_file;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string with_length(const std::string& header, uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header;
}

std::string file_of(const std::string& header, const std::string& data) {
  return with_length(header, header.size()) + data;
}

class Safetensors : public ::testing::Test {
 protected:
  std::string path(const std::string& name = "x.safetensors") const {
    return folder_.path() + "/" + name;
  }
  // The message of open() for a file of these bytes, without its path, or "ok".
  std::string message(const std::string& bytes) {
    write_file(path(), bytes);
    const auto reader = SafetensorsReader::open(path());
    return reader.ok() ? "ok" : reader.status().message().substr(path().size() + 2);
  }
  test::TemporaryFolder folder_;
};

TEST_F(Safetensors, ReadsAHandMadeFile) {
  const float values[2] = {1.5f, -2.0f};
  const std::string data(reinterpret_cast<const char*>(values), 8);
  write_file(
      path(),
      file_of(R"({"__metadata__":{"b":"1","a":"2"},"s":{"dtype":"I64","shape":[],)"
              R"("data_offsets":[8,16]},"m":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}})",
              data + std::string("\7\0\0\0\0\0\0\0", 8)));
  const auto reader = SafetensorsReader::open(path());
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_THAT(reader->metadata(), ElementsAre(std::pair<std::string, std::string>("b", "1"),
                                              std::pair<std::string, std::string>("a", "2")));
  ASSERT_EQ(reader->tensors().size(), 2u);
  EXPECT_EQ(reader->tensors()[0].name, "m") << "by place, not by name";
  EXPECT_EQ(reader->find("m")->shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(reader->find("s")->num_values(), 1);
  EXPECT_EQ(reader->find("s")->bytes[0], std::byte{7});
  EXPECT_EQ(reader->find("x"), nullptr);
  float out[2];
  ASSERT_TRUE(convert_to_f32(*reader->find("m"), out).ok());
  EXPECT_THAT(out, ElementsAre(1.5f, -2.0f));
  EXPECT_EQ(convert_to_f32(*reader->find("s"), out).message(),
            "tensor 's' is I64; weights must be F32, F16 or BF16");
}

// f16: 0x3555 = 1365/4096, 0x0001 = 2^-24 (subnormal), 0xFC00 = -inf; bf16: 0x3F81 = 1 + 2^-7.
TEST_F(Safetensors, ConvertsHalfFormatsExactlyAtAnyLength) {
  for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{8}, size_t{70001}}) {
    std::string halves, brains;
    for (size_t i = 0; i < count; ++i) {
      halves += i % 3 == 0   ? std::string("\x55\x35")
                : i % 3 == 1 ? std::string("\x01\x00", 2)
                             : std::string("\x00\xFC", 2);
      brains += i % 2 == 0 ? std::string("\x81\x3F") : std::string("\x00\xC0", 2);
    }
    const std::string header =
        fmt::format(R"({{"h":{{"dtype":"F16","shape":[{0}],"data_offsets":[0,{1}]}},)"
                    R"("b":{{"dtype":"BF16","shape":[{0}],"data_offsets":[{1},{2}]}}}})",
                    count, 2 * count, 4 * count);
    write_file(path(), file_of(header, halves + brains));
    const auto reader = SafetensorsReader::open(path());
    ASSERT_TRUE(reader.ok()) << reader.status().message();
    std::vector<float> h(count), b(count);
    ASSERT_TRUE(convert_to_f32(*reader->find("h"), h.data()).ok());
    ASSERT_TRUE(convert_to_f32(*reader->find("b"), b.data()).ok());
    for (size_t i = 0; i < count; ++i) {
      ASSERT_EQ(h[i], i % 3 == 0 ? 1365.0f / 4096 : i % 3 == 1 ? 0x1p-24f : -INFINITY) << i;
      ASSERT_EQ(b[i], i % 2 == 0 ? 1.0078125f : -2.0f) << i;
    }
  }
}

// The reference implementation wrote these files: what is read and written back is the same file.
TEST_F(Safetensors, RoundTripsByteForByte) {
  for (const std::string source :
       {"tests/golden/tiny_models/llama3_rope/model.safetensors",
        "tests/golden/tiny_models/qwen2/model-00002-of-00005.safetensors",
        "tests/golden/gguf/formats.safetensors"}) {
    const auto reader = SafetensorsReader::open(source);
    ASSERT_TRUE(reader.ok()) << reader.status().message();
    std::vector<SafetensorsSpec> specs;
    for (const auto& tensor : reader->tensors()) {
      specs.push_back({tensor.name, tensor.dtype, tensor.shape});
    }
    auto writer = SafetensorsWriter::create(path(), specs, reader->metadata());
    ASSERT_TRUE(writer.ok());
    for (const auto& tensor : reader->tensors()) ASSERT_TRUE(writer->append(tensor.bytes).ok());
    EXPECT_FALSE(std::filesystem::exists(path())) << "not there before it is whole";
    ASSERT_TRUE(writer->finish().ok());
    EXPECT_TRUE(read_file(path()) == read_file(source)) << source;
    std::filesystem::remove(path());
  }
}

TEST_F(Safetensors, WritesHeadersThatTheReferenceAccepts) {
  auto writer =
      SafetensorsWriter::create(path(), {{"a\"\n", "F32", {1}}, {"empty", "BF16", {0, 3}}});
  ASSERT_TRUE(writer.ok());
  const float value = 1;
  ASSERT_TRUE(writer->append_f32({&value, 1}).ok());
  ASSERT_TRUE(writer->append_f32({}).ok());
  ASSERT_TRUE(writer->finish().ok());
  const std::string bytes = read_file(path());
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a\"\n":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
      R"("empty":{"dtype":"BF16","shape":[0,3],"data_offsets":[4,4]}})";
  EXPECT_EQ(bytes.substr(8, header.size()), header);
  EXPECT_EQ((bytes.size() - 4) % 8, 0u) << "the data are aligned";
  EXPECT_TRUE(SafetensorsReader::open(path()).ok());
}

// bf16 keeps 8 bits: 1 + 2^-8 lies between 1 and 1 + 2^-7 and goes to the even 1; 1 + 3 * 2^-8 to 1
// + 2^-6.
TEST_F(Safetensors, RoundsToBf16TiesToEven) {
  const float values[6] = {1 + 0x1p-8f,
                           1 + 3 * 0x1p-8f,
                           std::nextafter(1 + 0x1p-8f, 2.0f),
                           3.4e38f,
                           std::bit_cast<float>(0x7f800001u),
                           -0.0f};
  auto writer = SafetensorsWriter::create(path(), {{"t", "BF16", {6}}});
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->append_f32(values).ok());
  ASSERT_TRUE(writer->finish().ok());
  const auto reader = SafetensorsReader::open(path());
  float out[6];
  ASSERT_TRUE(convert_to_f32(*reader->find("t"), out).ok());
  EXPECT_EQ(out[0], 1.0f);
  EXPECT_EQ(out[1], 1 + 0x1p-6f);
  EXPECT_EQ(out[2], 1 + 0x1p-7f);
  EXPECT_EQ(out[3], INFINITY);
  EXPECT_TRUE(std::isnan(out[4])) << "a NaN whose payload lies in the cut bits";
  EXPECT_EQ(std::bit_cast<uint32_t>(out[5]), 0x80000000u);
}

TEST_F(Safetensors, LeavesNoFileWithoutFinish) {
  {
    auto writer = SafetensorsWriter::create(path(), {{"t", "F32", {1}}});
    ASSERT_TRUE(writer.ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  EXPECT_EQ(SafetensorsWriter::create("no/such/x", {}).status().message(),
            "no/such/x: cannot create: No such file or directory");
}

TEST_F(Safetensors, RefusesForeignAndTruncatedFiles) {
  EXPECT_EQ(message("abc"),
            "3 bytes are too few for a safetensors file; it is truncated or of another kind");
  EXPECT_EQ(
      message(with_length("{}", 1'000'000'000)),
      "a header of 1000000000 bytes is announced, at most 100000000 are allowed; this is not a "
      "safetensors file");
  EXPECT_EQ(message(with_length("{}", 3)),
            "a header of 3 bytes is announced, 2 follow; the file is truncated");
  EXPECT_THAT(message(file_of("{\"a\":", "")),
              HasSubstr("header: not valid JSON: parse error at line 1"));
  EXPECT_EQ(message(file_of("[]", "")), "header: must be a JSON object, got array");
  EXPECT_EQ(message(file_of("{\"\xFF\":1}", "")), "header: invalid UTF-8 at byte 2; JSON is UTF-8");
  EXPECT_EQ(
      message(file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "1234567")),
      "tensor 't' ends at data byte 8, the file has 7; the file is truncated");
}

TEST_F(Safetensors, RefusesHeadersThatContradictThemselves) {
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return file_of(fmt::format(R"({{"t":{{"dtype":"{}","shape":{},"data_offsets":{}}}}})", dtype,
                               shape, offsets),
                   "12345678");
  };
  ASSERT_EQ(message(entry("F32", "[2]", "[0,8]")), "ok");
  EXPECT_EQ(message(entry("F32", "[2,3]", "[0,8]")),
            "tensor 't': data_offsets [0, 8] hold 8 bytes; F32 of shape [2, 3] needs 24");
  EXPECT_EQ(message(entry("F31", "[2]", "[0,8]")), "tensor 't': unknown dtype 'F31'");
  EXPECT_EQ(message(entry("F4", "[3]", "[0,8]")),
            "tensor 't': shape [3] of F4 is not a whole number of bytes");
  EXPECT_EQ(message(entry("F32", "[4294967296, 4294967296]", "[0,8]")),
            "tensor 't': shape [4294967296, 4294967296] is too large");
  EXPECT_EQ(message(entry("F32", "[-2]", "[0,8]")),
            "tensor 't': shape must be a list of sizes, got [-2]");
  EXPECT_EQ(message(entry("F32", "[2]", "[8,0]")),
            "tensor 't': data_offsets must be [begin, end], got [8,0]");
  EXPECT_EQ(message(file_of(R"({"t":{"dtype":"F32"}})", "")),
            "tensor 't': must be {dtype, shape, data_offsets}, got {\"dtype\":\"F32\"}");
  EXPECT_EQ(message(file_of(R"({"__metadata__":{"n":1}})", "")),
            "header: __metadata__ 'n' must be a string, got 1");
}

TEST_F(Safetensors, RefusesOverlapHolesRestsAndDuplicates) {
  const auto two = [](int first_end, int second_begin, const std::string& name = "b") {
    return file_of(fmt::format(R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[0,{}]}},)"
                               R"("{}":{{"dtype":"U8","shape":[{}],"data_offsets":[{},8]}}}})",
                               first_end, first_end, name, 8 - second_begin, second_begin),
                   "12345678");
  };
  ASSERT_EQ(message(two(4, 4)), "ok");
  EXPECT_EQ(message(two(5, 4)), "tensors 'a' and 'b' overlap at data byte 4");
  EXPECT_EQ(message(two(3, 4)),
            "hole of 1 bytes before tensor 'b' at data byte 4; data must be contiguous");
  EXPECT_EQ(message(two(4, 4, "a")), "header: duplicate key 'a'");
  EXPECT_EQ(message(file_of("{}", "123")),
            "3 bytes follow the last tensor; the header and the data do not belong together");
}

class Shards : public Safetensors {
 protected:
  void SetUp() override {
    write("1.safetensors", "a");
    write("2.safetensors", "b");
  }
  void write(const std::string& file, const std::string& tensor) {
    auto writer = SafetensorsWriter::create(path(file), {{tensor, "U8", {1}}});
    ASSERT_TRUE(writer.ok());
    const std::byte value{1};
    ASSERT_TRUE(writer->append({&value, 1}).ok());
    ASSERT_TRUE(writer->finish().ok());
  }
  std::string index_message(const std::string& index) {
    write_file(path("model.safetensors.index.json"), index);
    const auto reader = SafetensorsReader::open(folder_.path());
    return reader.ok() ? "ok" : reader.status().message().substr(folder_.path().size() + 1);
  }
};

TEST_F(Shards, AreReadThroughTheirIndex) {
  EXPECT_EQ(index_message(R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})"), "ok");
  const auto reader = SafetensorsReader::open(folder_.path());
  EXPECT_NE(reader->find("a"), nullptr);
  EXPECT_NE(reader->find("b"), nullptr);
}

TEST_F(Shards, MustAgreeWithTheirIndex) {
  EXPECT_EQ(index_message("{}"),
            "model.safetensors.index.json: key 'weight_map' is missing; expected {tensor: file}");
  EXPECT_EQ(index_message(R"({"weight_map": {"a": "3.safetensors"}})"),
            "3.safetensors: cannot open: No such file or directory");
  EXPECT_EQ(index_message(R"({"weight_map": {"a": "../1.safetensors"}})"),
            "model.safetensors.index.json: tensor 'a' must name a file of the same folder, got "
            "\"../1.safetensors\"");
  EXPECT_EQ(
      index_message(R"({"weight_map": {"a": "1.safetensors", "c": "2.safetensors"}})"),
      "model.safetensors.index.json: tensor 'b' is in 2.safetensors, the index says nothing of it; "
      "they do not belong together");
  EXPECT_EQ(
      index_message(R"({"weight_map": {"a": "1.safetensors", "c": "1.safetensors"}})"),
      "model.safetensors.index.json: tensor 'c' is not in 1.safetensors; the shard is of another "
      "model");
  write("2.safetensors", "a");
  EXPECT_EQ(index_message(R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})"),
            "2.safetensors: tensor 'a' is in an earlier shard too");
}

}  // namespace
}  // namespace gradus::model
