// No code: CMake precompiles headers for a source that reads them, and the preset asan compiles the others here without.
