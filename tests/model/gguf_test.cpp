// SPDX-License-Identifier: Apache-2.0
#include "model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "model/safetensors.h"
#include "tests/support/files.h"
#include "tests/support/gguf_file.h"

namespace gradus::model {
namespace {

using test::GgufFile;
using test::read_file;
using test::TemporaryFolder;
using test::write_file;
using ::testing::ElementsAre;

TEST(GgufReader, DequantisesEveryFormatLikeThePythonPackageBitForBit) {
  const auto file = GgufReader::open("tests/golden/gguf/formats.gguf");
  ASSERT_TRUE(file.ok()) << file.status().message();
  const auto golden = SafetensorsReader::open("tests/golden/gguf/formats.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status().message();
  EXPECT_EQ(file->tensors().size(), 11u);
  for (const GgufTensor& tensor : file->tensors()) {
    EXPECT_EQ(tensor.name, ggml_type_name(tensor.type));
    const SafetensorsTensor* expected = golden->find(tensor.name);
    ASSERT_NE(expected, nullptr) << tensor.name;
    EXPECT_EQ(tensor.shape, expected->shape);
    std::vector<float> values(static_cast<size_t>(tensor.num_values()));
    GgufReader::read_f32(tensor, values.data());
    EXPECT_EQ(std::memcmp(values.data(), expected->bytes.data(), expected->bytes.size()), 0)
        << tensor.name;
  }
}

// By hand: d = 0.5 (f16 0x3800), m = -1 (0xBC00); byte 0x31 holds 1 for value 0 and 3 for value 16.
TEST(GgufReader, DequantisesAHandMadeQ41Block) {
  std::string block = {'\x00', '\x38', '\x00', '\xBC'};
  block += '\x31' + std::string(15, '\0');
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.gguf";
  write_file(path, GgufFile().tensor("t", {1, 32}, 3, block).bytes());
  const auto file = GgufReader::open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  float values[32];
  GgufReader::read_f32(file->tensors()[0], values);
  EXPECT_EQ(values[0], -0.5f);
  EXPECT_EQ(values[16], 0.5f);
  EXPECT_EQ(values[1], -1.0f);
}

TEST(GgufReader, ReadsMetadataOfEveryType) {
  const auto file = GgufReader::open("tests/golden/gguf/formats.gguf");
  ASSERT_TRUE(file.ok()) << file.status().message();
  const auto integer = [&](const char* name) {
    return file->find(std::string("golden.") + name)->integer();
  };
  EXPECT_EQ(integer("uint8"), 200);
  EXPECT_EQ(integer("int8"), -100);
  EXPECT_EQ(integer("uint16"), 60000);
  EXPECT_EQ(integer("int16"), -30000);
  EXPECT_EQ(integer("uint32"), 4000000000);
  EXPECT_EQ(integer("int32"), -2000000000);
  EXPECT_EQ(integer("uint64"), INT64_MAX);
  EXPECT_EQ(integer("int64"), INT64_MIN);
  EXPECT_EQ(integer("string"), std::nullopt);
  EXPECT_EQ(integer("integers"), std::nullopt);
  EXPECT_EQ(file->find("golden.float32")->number(), 1e-5) << "the shortest decimal of the float";
  EXPECT_EQ(file->find("golden.float64")->number(), 1e-300);
  EXPECT_EQ(file->find("golden.bool")->truth(), true);
  EXPECT_EQ(file->find("golden.string")->text(), "caf\xC3\xA9");
  EXPECT_THAT(file->find("golden.integers")->integers().value(), ElementsAre(3, -1, 2));
  EXPECT_THAT(file->find("golden.numbers")->numbers().value(), ElementsAre(0.5, -1.25));
  EXPECT_THAT(file->find("golden.texts")->texts, ElementsAre("", "a b", "\xE2\x82\xAC"));
  EXPECT_EQ(file->find("golden.nothing"), nullptr);
}

TEST(GgufReader, ReadsNestedArraysAndVersion2) {
  const std::string inner = GgufFile::raw(uint32_t{0}) + GgufFile::raw(uint64_t{2}) + "\x07\x08";
  const std::string nested = GgufFile::raw(uint32_t{9}) + GgufFile::raw(uint64_t{1}) + inner;
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.gguf";
  write_file(path, GgufFile().key("nested", 9, nested).bytes(2));
  const auto file = GgufReader::open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_THAT(file->find("nested")->arrays[0].integers().value(), ElementsAre(7, 8));
}

class BrokenGguf : public ::testing::Test {
 protected:
  // The message of open() without the path, or "ok".
  std::string message(const std::string& bytes) {
    const std::string path = folder_.path() + "/x.gguf";
    write_file(path, bytes);
    const auto file = GgufReader::open(path);
    return file.ok() ? "ok" : file.status().message().substr(path.size() + 2);
  }
  TemporaryFolder folder_;
};

TEST_F(BrokenGguf, NamesAForeignFileAndVersion) {
  EXPECT_EQ(message(""), "does not start with 'GGUF'; not a GGUF file");
  EXPECT_EQ(message("PK\x03\x04zip"), "does not start with 'GGUF'; not a GGUF file");
  EXPECT_EQ(message(GgufFile().bytes(1)),
            "version 1 is not supported; supported are 2 and 3, little-endian");
  EXPECT_EQ(message(GgufFile().bytes(0x03000000)),
            "version 50331648 is not supported; supported are 2 and 3, little-endian (this file is "
            "big-endian)");
}

TEST_F(BrokenGguf, NamesWhereAFileIsCutShort) {
  const std::string whole =
      GgufFile().text("name", "abc").f32_tensor("t", {2}, std::vector{1.f, 2.f}).bytes();
  ASSERT_EQ(message(whole), "ok");
  EXPECT_EQ(message(whole.substr(0, 10)),
            "header: 8 bytes are announced at byte 8, 2 follow; the file is truncated or broken");
  EXPECT_EQ(message(whole.substr(0, 40)),
            "header: 1 keys and 1 tensors are announced, 16 bytes follow; the file is truncated or "
            "broken");
  EXPECT_EQ(
      message(whole.substr(0, 50)),
      "key 'name': 3 bytes are announced at byte 48, 2 follow; the file is truncated or broken");
  EXPECT_EQ(
      message(whole.substr(0, 60)),
      "tensor 't': 4 bytes are announced at byte 60, 0 follow; the file is truncated or broken");
  EXPECT_EQ(
      message(whole.substr(0, whole.size() - 1)),
      "tensor 't': 8 bytes at data offset 0, the file has 7 bytes of data; the file is truncated");
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(message(whole.substr(0, size)), "ok") << size << " of " << whole.size() << " bytes";
  }
}

TEST_F(BrokenGguf, RefusesCountsBeyondTheFile) {
  const uint64_t huge = uint64_t{1} << 62;
  EXPECT_EQ(message(GgufFile().key("k", 8, GgufFile::raw(huge)).bytes()),
            "key 'k': 4611686018427387904 bytes are announced at byte 45, 19 follow; the file is "
            "truncated "
            "or broken");
  EXPECT_EQ(
      message(GgufFile().key("k", 9, GgufFile::raw(uint32_t{10}) + GgufFile::raw(huge)).bytes()),
      "key 'k': 4611686018427387904 items of 8 bytes are announced at byte 49, 15 bytes follow; "
      "the "
      "file is truncated or broken");
  EXPECT_EQ(
      message(GgufFile().key("k", 9, GgufFile::raw(uint32_t{8}) + GgufFile::raw(huge)).bytes()),
      "key 'k': 4611686018427387904 items are announced at byte 49, 15 bytes follow; the file is "
      "truncated or broken");
}

TEST_F(BrokenGguf, RefusesUnknownTypesAndDeepNesting) {
  EXPECT_EQ(message(GgufFile().key("k", 13, "").bytes()),
            "key 'k': unknown value type 13 at byte 33; types are 0 to 12");
  std::string deep;
  for (int i = 0; i < 5; ++i) deep += GgufFile::raw(uint32_t{9}) + GgufFile::raw(uint64_t{1});
  EXPECT_EQ(message(GgufFile().key("k", 9, deep + std::string(64, '\0')).bytes()),
            "key 'k': arrays are nested more than 4 deep at byte 85");
}

TEST_F(BrokenGguf, RefusesDuplicates) {
  EXPECT_EQ(message(GgufFile().u32("k", 1).u32("k", 2).bytes()), "duplicate key 'k'");
  EXPECT_EQ(message(GgufFile()
                        .f32_tensor("t", {1}, std::vector{1.f})
                        .f32_tensor("t", {1}, std::vector{1.f})
                        .bytes()),
            "duplicate tensor 't'");
}

TEST_F(BrokenGguf, RefusesTensorsThatCannotBe) {
  EXPECT_EQ(message(GgufFile().tensor("t", {1, 256}, 10, std::string(84, '\0')).bytes()),
            "tensor 't': its format Q2_K is not supported; supported are F32, F16, BF16, Q8_0, "
            "Q4_0, Q4_1, "
            "Q5_0, Q5_1, Q4_K, Q5_K, Q6_K");
  EXPECT_EQ(message(GgufFile().tensor("t", {1, 48}, 2, std::string(27, '\0')).bytes()),
            "tensor 't': rows of 48 values are not whole blocks of 32 (Q4_0)");
  EXPECT_EQ(message(GgufFile().tensor("t", {1, 1, 1, 1, 1}, 0, "0000").bytes()),
            "tensor 't': 5 dimensions; at most 4 are allowed");
  EXPECT_EQ(message(GgufFile().tensor("t", {1 << 30, 1 << 30}, 0, "0000").bytes()),
            "tensor 't': dimension 1 of 1073741824 makes it too large");
  EXPECT_EQ(message(GgufFile().tensor_entry("t", {1}, 0, 4, "00000000").bytes()),
            "tensor 't': offset 4 is not a multiple of the alignment 32");
  EXPECT_EQ(message(GgufFile().tensor_entry("t", {1}, 0, uint64_t{1} << 63, "0000").bytes()),
            "tensor 't': 4 bytes at data offset 9223372036854775808, the file has 4 bytes of data; "
            "the file "
            "is truncated");
  EXPECT_EQ(message(GgufFile().u32("general.alignment", 48).bytes()),
            "key 'general.alignment' must be a power of two up to 2^20");
}

TEST(GgufReader, NamesAMissingFile) {
  EXPECT_EQ(GgufReader::open("no.gguf").status().message(),
            "no.gguf: cannot open: No such file or directory");
}

}  // namespace
}  // namespace gradus::model
