#!/bin/bash -eu
# In the form of OSS-Fuzz: builds every target into $OUT with $CXX, $CXXFLAGS and $LIB_FUZZING_ENGINE, a zip of its corpus beside it.
root=$(cd "$(dirname "$0")/../.." && pwd)
flags=(-std=c++20 -I "$root/include" -I "$root" -I "$root/benchmarks/eval")
build() {
  name=$1
  shift
  # shellcheck disable=SC2086
  $CXX $CXXFLAGS "${flags[@]}" "$root/tests/fuzz/${name}_fuzz.cpp" "$@" $LIB_FUZZING_ENGINE -o "$OUT/fuzz-$name"
  (cd "$root/tests/fuzz/corpus/$name" && zip -q -r "$OUT/fuzz-${name}_seed_corpus.zip" .)
}
build policy
build targets
build chunks
build cursor
build npy
[[ -e /usr/include/dlpack/dlpack.h ]] && build dlpack
[[ -e /usr/include/nlohmann/json.hpp ]] && build calibration "$root/examples/host/calibration_file.cpp"
[[ -e /usr/include/nlohmann/json.hpp ]] &&
  build results "$root/benchmarks/eval/results.cpp" "$root/benchmarks/eval/report/line_file.cpp" -lfmt
# $LLAMA: where llama.cpp is installed, as shared libraries.
if [[ -n "${LLAMA:-}" ]]; then
  for name in state checkpoint; do
    build $name -isystem "$LLAMA/include" -L"$LLAMA/lib" -Wl,-rpath,"$LLAMA/lib" -lllama -lggml -lggml-base
  done
fi
# shellcheck disable=SC2086
$CXX $CXXFLAGS "${flags[@]}" "$root/tests/fuzz/dictionary.cpp" -o dictionary
./dictionary > "$OUT/fuzz-policy.dict"
