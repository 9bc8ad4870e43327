// Part of lagkv (MIT). Included once a target (each_target.inl): score_kernels.

// ---- softmax --------------------------------------------------------------------------------------------------------

// e^x for x <= 0, within 2 units in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, then Taylor's series to r^7.
LAGKV_INLINE vec exp_nonpositive(vec x) {
  x = vmin(vmax(x, fill(-87.0F)), fill(0.0F));  // below it e^x is no normal f32; above stands padding only
  const ivec n = to_int(x * 1.44269504F - 0.5F);
  const vec whole = to_float(n);
  vec r = fma(whole, fill(-0.693359375F), x);  // ln 2 in two parts: the first has few bits, so n times it is exact
  r = fma(whole, fill(2.12194440e-4F), r);
  vec sum = fill(1.0F / 5040);
  constexpr float factor[] = {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F};
  for (float f : factor) sum = fma(sum, r, fill(f));
  return from_bits(bits(sum) + n * (1 << 23));
}

inline void add_softmax(float* x, std::size_t n, float weight, float* out) {
  constexpr float lowest = -3.402823466e38F;
  const std::size_t whole = n / lanes * lanes;
  vec most = fill(lowest);
  for (std::size_t i = 0; i < whole; i += lanes) {
    const vec value = load(x + i);
    most = vmax(pick(finite(value), value, fill(lowest)), most);
  }
  float part[lanes];
  store(part, most);
  float top = lowest;
  for (float p : part) top = p > top ? p : top;
  for (std::size_t i = whole; i < n; ++i)
    if (finite_one(x[i]) && x[i] > top) top = x[i];

  vec sum = fill(0.0F);
  for (std::size_t i = 0; i < n; i += lanes) {
    const std::size_t here = n - i < lanes ? n - i : lanes;
    const vec value = load_part(x + i, here);
    const vec e = pick(finite(value), exp_nonpositive(pick(finite(value), value, fill(top)) - top), fill(0.0F));
    store_part(e, x + i, here);
    sum += load_part(x + i, here);  // without what the padding gave
  }
  const float total = sum_of(sum);
  if (!(total > 0.0F)) return;  // nothing finite
  const float scale = weight / total;
  for (std::size_t i = 0; i < whole; i += lanes) store(out + i, load(out + i) + load(x + i) * scale);
  for (std::size_t i = whole; i < n; ++i) out[i] += x[i] * scale;
}

// ---- top_k ----------------------------------------------------------------------------------------------------------

// An integer with the order of the float: NaN below all, -0 beside +0.
LAGKV_INLINE std::int32_t order_of(float score) {
  std::int32_t b = __builtin_bit_cast(std::int32_t, score);
  if ((b & 0x7fffffff) > 0x7f800000) return -0x7fffffff - 1;
  if (b == -0x7fffffff - 1) b = 0;
  return b ^ ((b >> 31) & 0x7fffffff);
}

LAGKV_INLINE std::size_t count_from(const std::int32_t* keys, std::size_t n, std::int32_t threshold) {
  ivec found = filli(0);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) found -= yes(loadi(keys + i) >= threshold);
  std::int32_t part[lanes];
  storei(part, found);
  std::size_t count = 0;
  for (std::int32_t p : part) count += static_cast<std::size_t>(p);
  for (; i < n; ++i) count += keys[i] >= threshold ? 1 : 0;
  return count;
}

inline void top_k(const float* scores, std::size_t n, std::size_t k, std::uint32_t base, std::int32_t* keys, std::uint32_t* out) {
  if (k == 0) return;
  std::int64_t least = 0x7fffffff, most = -0x80000000LL;
  for (std::size_t i = 0; i < n; ++i) {
    keys[i] = order_of(scores[i]);
    least = keys[i] < least ? keys[i] : least;
    most = keys[i] > most ? keys[i] : most;
  }
  // Bisect for the largest threshold that at least k keys reach: passes over n integers in cache, no branches on data.
  // Usually a threshold that exactly k keys reach turns up after about log2(n) of them.
  std::size_t reached = n;
  while (least < most && reached != k) {
    const std::int64_t middle_key = least + (most - least + 1) / 2;
    const std::size_t count = count_from(keys, n, static_cast<std::int32_t>(middle_key));
    if (count >= k) {
      least = middle_key;
      reached = count;
    } else {
      most = middle_key - 1;
    }
  }
  const auto threshold = static_cast<std::int32_t>(least);
  std::size_t ties = n;  // how many of those at the threshold are taken, the earliest: all, unless more than k reach it
  if (reached > k) {
    const std::size_t above = threshold == 0x7fffffff ? 0 : count_from(keys, n, threshold + 1);
    ties = k - above;
  }
  std::size_t taken = 0;
  for (std::size_t i = 0; taken < k; ++i) {
    if (keys[i] < threshold) continue;
    if (keys[i] == threshold) {
      if (ties == 0) continue;
      --ties;
    }
    out[taken++] = base + static_cast<std::uint32_t>(i);
  }
}

inline constexpr score_kernels score_kernels_table{add_softmax, top_k};
