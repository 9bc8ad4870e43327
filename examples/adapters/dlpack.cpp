// A cache that comes as DLPack tensors from another language or library, compressed where it lies.
//
// From Python, with this file built as a library (c++ -std=c++20 -O2 -shared -fPIC ...), a layer of a PyTorch cache in CPU
// memory, or NumPy arrays, [batch, heads, tokens, channels]:
//
//   import ctypes
//   library = ctypes.CDLL("./libcompress.so")
//   library.compress.restype = ctypes.c_longlong
//   pointer = ctypes.pythonapi.PyCapsule_GetPointer
//   pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
//   k, v = keys.__dlpack__(), values.__dlpack__()      # capsules own what they point to: keep them during the call
//   rows = [library.compress(*(ctypes.c_void_p(pointer(x, b"dltensor")) for x in (k, v)), ctypes.c_size_t(b),
//                            ctypes.c_size_t(tokens)) for b in range(keys.shape[0])]
//   keys[b, :, :rows[b]] is then what is left of sequence b, where rows[b] is not -1
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <lagkv/adapters/dlpack.hpp>
#include <lagkv/lagkv.hpp>

/// Compresses one sequence of a batch; returns the tokens that are left, or -1 and says why.
extern "C" long long compress(const DLManagedTensor* keys, const DLManagedTensor* values, std::size_t batch, std::size_t tokens) {
  const auto refused = [](const std::string& why) { return std::fprintf(stderr, "%s\n", why.c_str()), -1LL; };
  const lagkv::result<lagkv::tensor> k = lagkv::view_of(*keys, batch), v = lagkv::view_of(*values, batch);  // "bhtc"
  if (!k) return refused("keys: " + k.message());
  if (!v) return refused("values: " + v.message());
  const lagkv::layer layer{*k, *v, tokens};
  static const lagkv::policy policy = *lagkv::parse("lagkv:sink=4,lag=64,ratio=0.25");
  if (const lagkv::status s = check(policy, layer); !s) return refused(s.message());
  lagkv::workspace workspace;  // a program that decodes keeps both, the cursor for each layer and sequence
  lagkv::cursor cursor;
  return static_cast<long long>(lagkv::compress(policy, layer, cursor, workspace));
}

int main() {
  std::int64_t shape[] = {2, 3, 300, 8};  // batch, heads, tokens, channels
  std::vector<float> memory[2];
  DLManagedTensor managed[2] = {};  // what a producer would hand over: here f32, dense
  for (int i = 0; i < 2; ++i) {
    for (int x = 0; x < 2 * 3 * 300 * 8; ++x) memory[i].push_back(static_cast<float>((x % 2400 * 29 + i) * (x + 3) % 97));
    DLTensor& x = managed[i].dl_tensor;
    x.data = memory[i].data();
    x.device = {kDLCPU, 0};
    x.dtype = {kDLFloat, 32, 1};
    x.ndim = 4;
    x.shape = shape;
  }
  const std::vector<float> before = memory[0];

  const long long rows = compress(&managed[0], &managed[1], 1, 300);
  std::printf("sequence 1: 300 tokens before, %lld after\n", rows);
  managed[1].dl_tensor.device.device_type = kDLCUDA;
  const bool refused = compress(&managed[0], &managed[1], 0, 300) == -1;
  const auto half = before.begin() + 3 * 300 * 8;  // sequence 0 is as it was
  const bool alone = std::equal(before.begin(), half, memory[0].begin()) && before != memory[0];
  return rows == 4 + 3 * 16 + 64 + 40 && refused && alone ? 0 : 1;
}
