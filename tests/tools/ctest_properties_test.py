#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every GoogleTest case carries all of Open MPI's settings, not only the first of the list: the escapes in
cmake/gradus_module.cmake depend on how CMake unpacks lists."""
import json
import os
import subprocess
import unittest

BUILD = os.environ.get("GRADUS_BUILD_DIR", "build")


class CTestProperties(unittest.TestCase):
    def test_environment_is_whole(self):
        listing = subprocess.run(["ctest", "--test-dir", BUILD, "--show-only=json-v1"],
                                 check=True, capture_output=True, text=True).stdout
        num_checked = 0
        for test in json.loads(listing)["tests"]:
            properties = {item["name"]: item["value"] for item in test["properties"]}
            if "OMPI_ALLOW_RUN_AS_ROOT=1" not in properties.get("ENVIRONMENT", []):
                continue
            num_checked += 1
            self.assertIn("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", properties["ENVIRONMENT"], test["name"])
            self.assertIn("OMPI_MCA_rmaps_base_oversubscribe=1", properties["ENVIRONMENT"])
        self.assertGreater(num_checked, 0)


if __name__ == "__main__":
    unittest.main()
