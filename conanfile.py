"""Conan recipe: conan create . -s compiler.cppstd=20 [-o lagkv/*:shared=True]

Components: lagkv::lagkv, the headers; lagkv::kernels, all that is no template compiled once; with shared=True lagkv::c, liblagkv.
"""

import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir

required_conan_version = ">=2.0"


class Lagkv(ConanFile):
    name = "lagkv"
    description = "KV-cache compression without attention weights"
    license = "MIT"
    topics = ("kv-cache", "llm", "inference", "header-only")
    settings = "os", "arch", "compiler", "build_type"
    options = {"shared": [True, False], "fPIC": [True, False]}
    default_options = {"shared": False, "fPIC": True}
    exports_sources = "include/*", "cmake/*", "c/*", "CMakeLists.txt", "LICENSE", "NOTICE"

    def set_version(self):
        text = load(self, os.path.join(self.recipe_folder, "include", "lagkv", "version.hpp"))
        self.version = ".".join(re.findall(r"#define LAGKV_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))

    def validate(self):
        check_min_cppstd(self, 20)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        for part in ("TESTS", "EXAMPLES"):
            toolchain.cache_variables[f"LAGKV_{part}"] = False
        toolchain.cache_variables["LAGKV_C"] = bool(self.options.shared)
        toolchain.cache_variables["BUILD_SHARED_LIBS"] = False  # lagkv::kernels is static; lagkv::c is shared by itself
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        for text in ("LICENSE", "NOTICE"):
            copy(self, text, self.source_folder, os.path.join(self.package_folder, "licenses"))
        for folder in ("cmake", "pkgconfig"):  # conan writes its own
            rmdir(self, os.path.join(self.package_folder, "lib", folder))
        rmdir(self, os.path.join(self.package_folder, "share"))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "lagkv")
        headers = self.cpp_info.components["lagkv"]
        headers.set_property("cmake_target_name", "lagkv::lagkv")
        headers.set_property("pkg_config_name", "lagkv")
        headers.libdirs = headers.bindirs = []
        kernels = self.cpp_info.components["kernels"]
        kernels.set_property("cmake_target_name", "lagkv::kernels")
        kernels.set_property("pkg_config_name", "lagkv-kernels")
        kernels.libs, kernels.defines, kernels.requires = ["lagkv_kernels"], ["LAGKV_COMPILED"], ["lagkv"]
        if self.options.shared:
            c = self.cpp_info.components["c"]
            c.set_property("cmake_target_name", "lagkv::c")
            c.set_property("pkg_config_name", "lagkv-c")
            c.libs = ["lagkv"]
