// SPDX-License-Identifier: Apache-2.0
#include "common/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>

#include "common/mapped_file.h"
#include "tests/support/files.h"

namespace gradus {
namespace {

class AtomicFileTest : public ::testing::Test {
 protected:
  std::string path() const { return folder_.path() + "/x"; }
  test::TemporaryFolder folder_;
};

TEST_F(AtomicFileTest, ReplacesTheOldFileOnlyOnCommit) {
  test::write_file(path(), "old");
  auto file = AtomicFile::create(path());
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(file->append("ne").ok());
  ASSERT_TRUE(file->append("w").ok());
  EXPECT_EQ(test::read_file(path()), "old");
  ASSERT_TRUE(file->commit().ok());
  EXPECT_EQ(test::read_file(path()), "new");
}

TEST_F(AtomicFileTest, LeavesNothingWithoutCommit) {
  {
    auto file = AtomicFile::create(path());
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->append("new").ok());
    const AtomicFile moved = std::move(file).value();
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(AtomicFileTest, LetsTwoWritersOfOnePathBe) {
  auto first = AtomicFile::create(path());
  auto second = AtomicFile::create(path());
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE(first->append("first").ok());
  ASSERT_TRUE(second->append("second").ok());
  ASSERT_TRUE(second->commit().ok());
  ASSERT_TRUE(first->commit().ok());
  EXPECT_EQ(test::read_file(path()), "first");
}

// A limit on the size of files stands for a full disk: write() fails in the same place.
TEST_F(AtomicFileTest, SaysHowFarItCameOnAFullDisk) {
  test::write_file(path(), "old");
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 5;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status status = write_file_atomically(path(), "123456789");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(status.message(),
            path() +
                ": cannot write after 5 bytes: File too large; free some space or choose "
                "another place");
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(test::read_file(path()), "old");
}

TEST(AtomicFile, NamesAFolderThatIsNotThere) {
  EXPECT_EQ(AtomicFile::create("no/such/x").status().message(),
            "no/such/x: cannot create: No such file or directory");
}

TEST(MappedFile, ShowsTheBytesOfAFile) {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/x";
  test::write_file(path, "abc");
  auto file = MappedFile::open(path);
  ASSERT_TRUE(file.ok());
  const MappedFile moved = std::move(file).value();
  EXPECT_EQ(moved.bytes().size(), 3u);
  EXPECT_EQ(moved.bytes()[2], std::byte{'c'});
  test::write_file(path, "");
  EXPECT_TRUE(MappedFile::open(path)->bytes().empty());
  EXPECT_EQ(MappedFile::open(path + "y").status().message(),
            path + "y: cannot open: No such file or directory");
  EXPECT_EQ(MappedFile::open(folder.path()).status().message(),
            folder.path() + ": not a regular file");
}

}  // namespace
}  // namespace gradus
