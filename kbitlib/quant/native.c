/* Weights to k bits and back on the CPU in one pass over memory: the same numbers as the PyTorch path, bit for bit.

   Compiled by native.py on first use. Each thread takes groups of rows whose codes are a whole number of bytes: it finds
   the scales of a row, its codes, one a byte, and packs the codes of the group. What stays in plain C is written so that
   compilers turn it into vector code; looking levels up needs AVX-512's permutations, with a plain form for other
   machines. No multiplication may be fused with an addition (-ffp-contract=off), or results would differ in the last bit.
*/
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VBMI__)
#define WIDE 1
#endif
#if defined(WIDE) || defined(__BMI2__)
#include <immintrin.h>
#endif

#define ALWAYS static inline __attribute__((always_inline))

enum { FP32, FP16, BF16, E8M0 };                               /* types of values and of scales */
enum { GIVEN, ABSMAX, SIGNED_ABSMAX, MEAN, WITH_ZERO, ENDS };  /* what a block's scale spans */
enum { INTEGERS, ZERO_POINT, MINIMUM, LEVELS };                /* how a code stands for a level */
enum { TRITS = 5 };                                            /* base-3 digits a byte */
enum { CHUNK = 16 };                                           /* groups of rows a thread takes at a time: cores may be unlike */
enum { AHEAD = 4096 };                                         /* bytes of codes fetched before they are needed */

typedef struct {
    const void *values;   /* quantize: (rows, columns) to read */
    void *out;            /* dequantize: (rows, columns) to write */
    uint8_t *codes;       /* packed */
    float *scale, *zero;  /* (rows, blocks a row); zero for ZERO_POINT and MINIMUM */
    const float *levels;  /* quantize: thresholds as a search tree, [256]; dequantize: what each code counts as, [256] */
    const uint8_t *order; /* quantize: the code of each rank, [256], or NULL where codes count the levels */
    int64_t rows, columns, block;
    int32_t dtype, range, scale_type, kind;
    int32_t bits;         /* a code; 0 for base-3 digits */
    int32_t low, high;    /* of INTEGERS; the highest code of ZERO_POINT and MINIMUM */
    int32_t zero_type, threads, emax;
    float extent;         /* a scale is a block's span over this */
} Job;

/* ---- numbers ---- */

ALWAYS uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
ALWAYS float of_bits(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
ALWAYS uint16_t to_bf16(float x) { uint32_t u = bits_of(x); return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16); }

ALWAYS float rounded(float x, int type) {
    if (type == FP16) return (float)(_Float16)x;
    if (type == BF16) return of_bits((uint32_t)to_bf16(x) << 16);
    return x;
}

static const float *as_floats(const Job *job, int64_t row, float *buffer) {
    const int64_t n = job->columns;
    if (job->dtype == FP32) return (const float *)job->values + row * n;
    const uint16_t *from = (const uint16_t *)job->values + row * n;
    int64_t i = 0;
    if (job->dtype == BF16) {
        for (; i < n; i++) buffer[i] = of_bits((uint32_t)from[i] << 16);
        return buffer;
    }
#ifdef WIDE
    for (; i + 16 <= n; i += 16) _mm512_storeu_ps(buffer + i, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(from + i))));
#endif
    for (; i < n; i++) { _Float16 half; memcpy(&half, from + i, 2); buffer[i] = (float)half; }
    return buffer;
}

/* ---- ranges and scales: integer comparisons of float bits, which vectorise and order as the floats do ---- */

static uint32_t absmax_bits(const float *x, int64_t n) {
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) { uint32_t u = bits_of(x[i]) & 0x7fffffff; most = u > most ? u : most; }
    return most;
}

ALWAYS int32_t ordered(int32_t u) { return u ^ ((u >> 31) & 0x7fffffff); }

static void ends(const float *x, int64_t n, float *low, float *high) {
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (int64_t i = 0; i < n; i++) {
        int32_t u = ordered((int32_t)bits_of(x[i]));
        least = u < least ? u : least;
        most = u > most ? u : most;
    }
    *low = of_bits((uint32_t)ordered(least)) + 0.0f; /* never minus zero */
    *high = of_bits((uint32_t)ordered(most)) + 0.0f;
}

static float mean_magnitude(const float *x, int64_t n) {
    double sums[16] = {0}, sum = 0; /* in double: then no order of adding changes the float it is rounded to */
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) for (int j = 0; j < 16; j++) sums[j] += fabsf(x[i + j]);
    for (; i < n; i++) sum += fabsf(x[i]);
    for (int j = 0; j < 16; j++) sum += sums[j];
    return (float)(sum / (double)n);
}

/* 2^(floor(log2 span) - emax), and 2^-127 for a span of zero. */
static float power_of_two(float span, int emax) {
    int exponent = (int)(bits_of(span) >> 23);                        /* of a normal number, 127 too high */
    if (exponent > 0 && exponent > emax) return of_bits((uint32_t)(exponent - emax) << 23);
    if (span == 0) return ldexpf(1, -127);
    frexpf(span, &exponent);
    return ldexpf(1, exponent - 1 - emax);
}

/* Scale and zero of one block; returns 1 where a weight is not finite or a scale or minimum does not fit its type. */
static int find_grid(const Job *job, const float *x, int64_t n, float *scale, float *zero) {
    const uint32_t largest = absmax_bits(x, n);
    if (largest >= 0x7f800000) return 1;
    float low = 0, high = 0;
    if (job->range == ABSMAX) high = of_bits(largest);
    else if (job->range == MEAN) high = mean_magnitude(x, n);
    else ends(x, n, &low, &high);
    if (job->range == SIGNED_ABSMAX) { high = high >= -low ? high : low; low = 0; }
    if (job->range == WITH_ZERO) { low = low > 0 ? 0 : low; high = high < 0 ? 0 : high; }
    float span = high - low;
    if (job->scale_type == E8M0) *scale = power_of_two(span, job->emax);
    else *scale = rounded(span / job->extent, job->scale_type);
    if (span != 0 && !(*scale != 0 && isfinite(*scale) && isfinite(1 / *scale))) return 1;
    if (job->kind == ZERO_POINT) {
        float at = *scale == 0 ? 0 : rintf(-low / *scale);
        *zero = at < 0 ? 0 : at > job->high ? job->high : at;
    } else if (job->kind == MINIMUM) {
        *zero = rounded(low, job->zero_type);
        return !isfinite(*zero);
    }
    return 0;
}

/* ---- weights to codes, one a byte ---- */

ALWAYS float clamped(float x, float low, float high) { x = x < low ? low : x; return x > high ? high : x; }

static void encode_even(const Job *job, const float *x, int64_t n, float inverse, float zero, uint8_t *codes) {
    const float low = job->low, high = job->high;
    if (job->kind == INTEGERS)
        for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)(int32_t)(clamped(rintf(x[i] * inverse), low, high) - low);
    else if (job->kind == ZERO_POINT)
        for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)(int32_t)clamped(rintf(x[i] * inverse) + zero, 0, high);
    else
        for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)(int32_t)clamped(rintf((x[i] - zero) * inverse), 0, high);
}

#ifdef WIDE
/* The entry of a table of 16 x `registers` floats whose number stands in the low bits of n; the two bits above the lowest
   five, where so many count, are given as masks: bit 5 first, then bit 6. */
ALWAYS __m512 lookup(const __m512 *table, __m512i n, const int registers, __mmask16 bit5, __mmask16 bit6) {
    if (registers == 1) return _mm512_permutexvar_ps(n, table[0]);
    const __m512 first = _mm512_permutex2var_ps(table[0], n, table[1]);
    if (registers == 2) return first;
    const __m512 lower = _mm512_mask_blend_ps(bit5, first, _mm512_permutex2var_ps(table[2], n, table[3]));
    if (registers == 4) return lower;
    return _mm512_mask_blend_ps(bit6, lower, lookup(table + 4, n, 4, bit5, bit6));
}

/* The ranks of 16 values among sorted thresholds, by descending a tree held in registers. Its first four depths: bit by
   bit from the top, among top[d], the thresholds of depth d, each where the bits found so far lead. Deeper: node n's
   children are 2n and 2n+1, and the nodes of depth d fill 2^d / 16 registers. The top bit, 2^depth, may be left on. */
ALWAYS __m128i ranks(const __m512 *top, const __m512 *nodes, __m512 values, const int depth) {
    const int few = depth < 4 ? depth : 4;
    __m512i found = _mm512_setzero_si512();
    __mmask16 right[8];
    for (int d = 0; d < few; d++) {
        right[d] = _mm512_cmp_ps_mask(values, d ? _mm512_permutexvar_ps(found, top[d]) : top[0], _CMP_GT_OQ);
        found = _mm512_mask_add_epi32(found, right[d], found, _mm512_set1_epi32(1 << (few - 1 - d)));
    }
    for (int d = 4; d < depth; d++) { /* the bit on top of a node's number is left out: lookup reads only those below */
        const int at = 1 << (d - 4);
        const __m512 threshold = lookup(nodes + at, found, at, right[d == 7], right[0]); /* bits 5 and 6 at depth 7 */
        right[d] = _mm512_cmp_ps_mask(values, threshold, _CMP_GT_OQ);
        found = _mm512_add_epi32(found, found);
        found = _mm512_mask_add_epi32(found, right[d], found, _mm512_set1_epi32(1));
    }
    return _mm512_cvtepi32_epi8(found);
}

/* One row. */
ALWAYS void encode_levels_deep(const Job *job, const float *x, const float *inverse, uint8_t *codes, const int depth) {
    const float *tree = job->levels;
    const int few = depth < 4 ? depth : 4;
    __m512 top[4], nodes[16];
    for (int i = 0; i < (depth <= 4 ? 1 : 1 << (depth - 4)); i++) nodes[i] = _mm512_loadu_ps(tree + 16 * i);
    for (int d = 0; d < few; d++) { /* the node of depth d that the bits r lead to: 2^d + (r >> (few - d)) */
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i bits = _mm512_and_si512(lanes, _mm512_set1_epi32((1 << few) - 1));
        top[d] = _mm512_permutexvar_ps(_mm512_add_epi32(_mm512_srli_epi32(bits, (unsigned)(few - d)), _mm512_set1_epi32(1 << d)), nodes[0]);
    }
    for (int64_t at = 0, b = 0; at < job->columns; at += job->block, b++) {
        const int64_t end = job->columns - at < job->block ? job->columns : at + job->block;
        const __m512 factor = _mm512_set1_ps(inverse[b]);
        int64_t i = at;
        for (; i + 16 <= end; i += 16)
            _mm_storeu_si128((void *)(codes + i), ranks(top, nodes, _mm512_mul_ps(_mm512_loadu_ps(x + i), factor), depth));
        if (i < end) {
            const __mmask16 rest = (__mmask16)((1u << (end - i)) - 1);
            const __m512 values = _mm512_mul_ps(_mm512_maskz_loadu_ps(rest, x + i), factor);
            _mm_mask_storeu_epi8(codes + i, rest, ranks(top, nodes, values, depth));
        }
    }
}

static void encode_levels(const Job *job, const float *x, const float *inverse, uint8_t *codes) {
    switch (job->bits) {
        case 1: encode_levels_deep(job, x, inverse, codes, 1); break;
        case 2: encode_levels_deep(job, x, inverse, codes, 2); break;
        case 3: encode_levels_deep(job, x, inverse, codes, 3); break;
        case 4: encode_levels_deep(job, x, inverse, codes, 4); break;
        case 5: encode_levels_deep(job, x, inverse, codes, 5); break;
        case 6: encode_levels_deep(job, x, inverse, codes, 6); break;
        case 7: encode_levels_deep(job, x, inverse, codes, 7); break;
        default: encode_levels_deep(job, x, inverse, codes, 8);
    }
}
#else
static void encode_levels(const Job *job, const float *x, const float *inverse, uint8_t *codes) {
    for (int64_t i = 0; i < job->columns; i++) {
        const float value = x[i] * inverse[i / job->block];
        uint32_t node = 1;
        for (int d = 0; d < job->bits; d++) node = 2 * node + (value > job->levels[node]);
        codes[i] = (uint8_t)node;
    }
}
#endif

static void put_in_order(uint8_t *codes, int64_t n, int bits, const uint8_t *order) {
    const uint8_t mask = (uint8_t)((1 << bits) - 1);
    int64_t i = 0;
#ifdef WIDE
    if (bits <= 6) {
        const __m512i table = _mm512_loadu_si512(order);
        for (; i + 64 <= n; i += 64) {
            const __m512i rank = _mm512_and_si512(_mm512_loadu_si512(codes + i), _mm512_set1_epi8((char)mask));
            _mm512_storeu_si512(codes + i, _mm512_permutexvar_epi8(rank, table));
        }
    } else {
        const __m512i first = _mm512_loadu_si512(order), second = _mm512_loadu_si512(order + 64);
        const __m512i third = _mm512_loadu_si512(order + 128), fourth = _mm512_loadu_si512(order + 192);
        for (; i + 64 <= n; i += 64) {
            const __m512i rank = _mm512_and_si512(_mm512_loadu_si512(codes + i), _mm512_set1_epi8((char)mask));
            const __m512i lower = _mm512_permutex2var_epi8(first, rank, second), upper = _mm512_permutex2var_epi8(third, rank, fourth);
            _mm512_storeu_si512(codes + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(rank), lower, upper));
        }
    }
#endif
    for (; i < n; i++) codes[i] = order[codes[i] & mask];
}

/* ---- codes to bytes and back: the first code in the highest bits ---- */

ALWAYS void pack_bits(const uint8_t *codes, int64_t n, uint8_t *packed, const int k) {
    const uint64_t ones = 0x0101010101010101ull * (uint64_t)((1 << k) - 1);
    int64_t i = 0;
#ifdef WIDE
    for (; k == 4 && i + 64 <= n; i += 64, packed += 32) { /* neighbours as sixteens and ones of a sum */
        const __m512i few = _mm512_and_si512(_mm512_loadu_si512(codes + i), _mm512_set1_epi8(15));
        const __m512i pairs = _mm512_maddubs_epi16(few, _mm512_set1_epi16(0x0110));
        _mm256_storeu_si256((void *)packed, _mm512_cvtepi16_epi8(pairs));
    }
    for (; k == 2 && i + 64 <= n; i += 64, packed += 16) {
        const __m512i few = _mm512_and_si512(_mm512_loadu_si512(codes + i), _mm512_set1_epi8(3));
        const __m512i pairs = _mm512_maddubs_epi16(few, _mm512_set1_epi16(0x0104));
        _mm_storeu_si128((void *)packed, _mm512_cvtepi32_epi8(_mm512_madd_epi16(pairs, _mm512_set1_epi32(0x00010010))));
    }
#endif
    for (; i + 8 <= n; i += 8, packed += k) {
        uint64_t word;
        memcpy(&word, codes + i, 8);
        word = __builtin_bswap64(word);
#ifdef __BMI2__
        word = _pext_u64(word, ones);
#else
        uint64_t dense = 0;
        word &= ones;
        for (int j = 7; j >= 0; j--) dense = dense << k | ((word >> (8 * j)) & 0xff);
        word = dense;
#endif
        word = __builtin_bswap64(word << (64 - 8 * k));
        memcpy(packed, &word, (size_t)k);
    }
    uint32_t held = 0, bits = 0;
    for (; i < n; i++) {
        held = held << k | (codes[i] & ((1u << k) - 1));
        for (bits += (uint32_t)k; bits >= 8; bits -= 8) *packed++ = (uint8_t)(held >> (bits - 8));
    }
    if (bits) *packed = (uint8_t)(held << (8 - bits));
}

static void pack_trits(const uint8_t *codes, int64_t n, uint8_t *packed) {
    /* one product weighs five digits by 81, 27, 9, 3, 1 and adds them up in its fifth byte; no lower byte overflows */
    const uint64_t weights = 81ull << 32 | 27ull << 24 | 9ull << 16 | 3ull << 8 | 1;
    for (int64_t i = 0; i < n; i += TRITS) {
        uint64_t word;
        memcpy(&word, codes + i, 8); /* there is room beyond */
        if (n - i < TRITS) word &= (1ull << (8 * (n - i))) - 1;
        *packed++ = (uint8_t)(word * weights >> 32);
    }
}

static void pack(const uint8_t *codes, int64_t n, int bits, uint8_t *packed) {
    switch (bits) {
        case 0: pack_trits(codes, n, packed); break;
        case 1: pack_bits(codes, n, packed, 1); break;
        case 2: pack_bits(codes, n, packed, 2); break;
        case 3: pack_bits(codes, n, packed, 3); break;
        case 4: pack_bits(codes, n, packed, 4); break;
        case 5: pack_bits(codes, n, packed, 5); break;
        case 6: pack_bits(codes, n, packed, 6); break;
        case 7: pack_bits(codes, n, packed, 7); break;
        default: memcpy(packed, codes, (size_t)n);
    }
}

/* codes has room for 64 more than n. */
static void unpack_bits(const uint8_t *packed, int64_t n, int k, uint8_t *codes) {
    int64_t i = 0;
#ifdef WIDE
    uint8_t from[64], shift[64];
    for (int j = 0; j < 64; j++) { /* each group of eight codes: k bytes, the first one on top, then shifted apart */
        from[j] = (uint8_t)(j / 8 * k + k - 1 - j % 8);
        shift[j] = (uint8_t)((7 - j % 8) * k);
    }
    const __mmask64 bytes = ~0ull >> (64 - 8 * k), used = 0x0101010101010101ull * ((1u << k) - 1);
    const __m512i bring = _mm512_loadu_si512(from), apart = _mm512_loadu_si512(shift);
    const __m512i ones = _mm512_set1_epi8((char)((1 << k) - 1));
    for (; i < n; i += 64, packed += 8 * k) {
        const int64_t left = ((n - i) * k + 7) / 8; /* bytes; never read beyond the array */
        _mm_prefetch((const char *)packed + AHEAD, _MM_HINT_T0); /* the weights written meanwhile put the processor's own off */
        const __m512i word = _mm512_maskz_loadu_epi8(left < 8 * k ? bytes & (~0ull >> (64 - left)) : bytes, packed);
        const __m512i grouped = _mm512_maskz_permutexvar_epi8(used, bring, word);
        _mm512_storeu_si512(codes + i, _mm512_and_si512(_mm512_multishift_epi64_epi8(apart, grouped), ones));
    }
#else
    uint32_t held = 0, bits = 0;
    for (; i < n; i++, bits -= (uint32_t)k) {
        for (; bits < (uint32_t)k; bits += 8) held = held << 8 | *packed++;
        codes[i] = (uint8_t)((held >> (bits - (uint32_t)k)) & ((1u << k) - 1));
    }
#endif
}

/* codes has room for 8 more than n. */
static void unpack_trits(const uint8_t *packed, int64_t n, uint8_t *codes) {
    uint64_t digits[256] = {0};
    for (uint64_t byte = 0; byte < 256; byte++)
        for (uint64_t j = 0, rest = byte; j < TRITS; j++, rest /= 3) digits[byte] |= (rest % 3) << (8 * (TRITS - 1 - j));
    for (int64_t i = 0; i < n; i += TRITS) memcpy(codes + i, &digits[*packed++], 8);
}

/* ---- codes to weights ---- */

typedef struct { uint8_t of[4][256]; } Planes; /* the levels' four bytes, the lowest first */

static Planes planes_of(const float *levels) {
    Planes planes;
    for (int i = 0; i < 256; i++) for (int p = 0; p < 4; p++) planes.of[p][i] = (uint8_t)(bits_of(levels[i]) >> (8 * p));
    return planes;
}

#ifdef WIDE
/* The levels of 64 codes, or of their first quarters: up to 32 levels from registers of floats, more byte by byte from tables of bytes. */
ALWAYS void sixty_four(const __m512 *table, const __m512i (*bytes)[4], const uint8_t *codes, __m512 *out, const int bits, int quarters) {
    if (bits <= 5) {
        for (int q = 0; q < quarters; q++) {
            const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(codes + 16 * q)));
            out[q] = lookup(table, code, bits <= 4 ? 1 : 2, 0, 0);
        }
        return;
    }
    /* interleaving works within lanes of four floats: such fours are brought where it will leave them in order */
    const __m512i across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i code = _mm512_permutexvar_epi32(across, _mm512_loadu_si512(codes));
    __m512i byte[4];
    for (int p = 0; p < 4; p++) {
        if (bits == 6) byte[p] = _mm512_permutexvar_epi8(code, bytes[p][0]);
        else byte[p] = _mm512_permutex2var_epi8(bytes[p][0], code, bytes[p][1]);
        if (bits == 8)
            byte[p] = _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), byte[p], _mm512_permutex2var_epi8(bytes[p][2], code, bytes[p][3]));
    }
    const __m512i low = _mm512_unpacklo_epi8(byte[0], byte[1]), high = _mm512_unpacklo_epi8(byte[2], byte[3]);
    const __m512i low2 = _mm512_unpackhi_epi8(byte[0], byte[1]), high2 = _mm512_unpackhi_epi8(byte[2], byte[3]);
    out[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low, high));
    out[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low, high));
    out[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low2, high2));
    out[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low2, high2));
}

/* One row. Where it can, it writes past the caches, which would read every line before it is written over. */
ALWAYS void decode_row_in(const Job *job, const Planes *planes, const uint8_t *codes, const float *scale, const float *zero, float *out, const int bits) {
    __m512 table[2], levels[4];
    __m512i bytes[4][4];
    for (int i = 0; i < 2; i++) table[i] = _mm512_loadu_ps(job->levels + 16 * i);
    for (int p = 0; p < 4; p++) for (int i = 0; i < 4; i++) bytes[p][i] = _mm512_loadu_si512(planes->of[p] + 64 * i);
    const int past = job->dtype == FP32 && (uintptr_t)out % 64 == 0 && job->block % 16 == 0;
    for (int64_t at = 0, b = 0; at < job->columns; at += job->block, b++) {
        const int64_t end = job->columns - at < job->block ? job->columns : at + job->block;
        const __m512 factor = _mm512_set1_ps(scale[b]), offset = _mm512_set1_ps(zero ? zero[b] : 0);
        for (int64_t i = at; i < end; i += 64) {
            /* codes has room beyond */
            if (end - i >= 64) sixty_four(table, (const void *)bytes, codes + i, levels, bits, 4);
            else sixty_four(table, (const void *)bytes, codes + i, levels, bits, (int)(end - i + 15) / 16);
            for (int q = 0; q < 4; q++) {
                const int64_t left = end - i - 16 * q;
                __m512 weights = _mm512_mul_ps(job->kind == ZERO_POINT ? _mm512_sub_ps(levels[q], offset) : levels[q], factor);
                if (job->kind == MINIMUM) weights = _mm512_add_ps(weights, offset);
                if (left >= 16 && past) _mm512_stream_ps(out + i + 16 * q, weights);
                else if (left >= 16) _mm512_storeu_ps(out + i + 16 * q, weights);
                else if (left > 0) _mm512_mask_storeu_ps(out + i + 16 * q, (__mmask16)((1u << left) - 1), weights);
            }
        }
    }
}

static void decode_row(const Job *job, const Planes *planes, const uint8_t *codes, const float *scale, const float *zero, float *out) {
    switch (job->bits) {
        case 8: decode_row_in(job, planes, codes, scale, zero, out, 8); break;
        case 7: decode_row_in(job, planes, codes, scale, zero, out, 7); break;
        case 6: decode_row_in(job, planes, codes, scale, zero, out, 6); break;
        case 5: decode_row_in(job, planes, codes, scale, zero, out, 5); break;
        default: decode_row_in(job, planes, codes, scale, zero, out, 4);
    }
}
#else
static void decode_row(const Job *job, const Planes *planes, const uint8_t *codes, const float *scale, const float *zero, float *out) {
    (void)planes;
    for (int64_t i = 0; i < job->columns; i++) {
        const int64_t b = i / job->block;
        out[i] = (job->kind == ZERO_POINT ? job->levels[codes[i]] - zero[b] : job->levels[codes[i]]) * scale[b];
        if (job->kind == MINIMUM) out[i] += zero[b];
    }
}
#endif

static void write_as(const Job *job, const float *x, int64_t row) {
    const int64_t n = job->columns;
    int64_t i = 0;
    uint16_t *to = (uint16_t *)job->out + row * n;
    if (job->dtype == BF16) {
        for (; i < n; i++) to[i] = to_bf16(x[i]);
        return;
    }
#ifdef WIDE
    for (; i + 16 <= n; i += 16) _mm256_storeu_si256((void *)(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) { _Float16 half = (_Float16)x[i]; memcpy(to + i, &half, 2); }
}

/* ---- the whole matrix ---- */

/* Rows whose codes together are a whole number of bytes. */
static int64_t rows_together(const Job *job) {
    int64_t rows = 1, unit = job->bits ? 8 : TRITS;
    while (rows < unit && rows * job->columns * (job->bits ? job->bits : 1) % unit) rows++;
    return rows;
}

static int64_t packed_bytes(const Job *job, int64_t codes) {
    return job->bits ? (codes * job->bits + 7) / 8 : (codes + TRITS - 1) / TRITS;
}

/* 0; 1 where a weight, scale or minimum is not to be had, with nothing said of where; 2 where memory ran out. */
int kbit_quantize(const Job *job) {
    const int64_t together = rows_together(job), groups = (job->rows + together - 1) / together, n = job->columns;
    const int64_t per_row = (n + job->block - 1) / job->block, bytes = packed_bytes(job, together * n);
    int bad = 0;
    #pragma omp parallel num_threads(job->threads) reduction(| : bad)
    {
        uint8_t *codes = malloc((size_t)(together * n + 64));
        float *buffer = job->dtype == FP32 ? NULL : malloc((size_t)n * sizeof(float));
        float *inverse = malloc((size_t)per_row * sizeof(float));
        if (!codes || !inverse || (job->dtype != FP32 && !buffer)) bad |= 2;
        #pragma omp for schedule(dynamic, CHUNK)
        for (int64_t g = 0; g < groups; g++) {
            if (bad) continue;
            const int64_t first = g * together, last = first + together < job->rows ? first + together : job->rows;
            for (int64_t row = first; row < last; row++) {
                const float *x = as_floats(job, row, buffer);
                uint8_t *here = codes + (row - first) * n;
                for (int64_t at = 0, b = 0; at < n; at += job->block, b++) {
                    const int64_t width = n - at < job->block ? n - at : job->block, block = row * per_row + b;
                    float unused = 0, *zero = job->zero ? job->zero + block : &unused;
                    if (job->range != GIVEN) bad |= find_grid(job, x + at, width, job->scale + block, zero);
                    inverse[b] = job->scale[block] == 0 ? 0 : 1 / job->scale[block];
                    for (int64_t i = at; i < at + width; i += 16) __builtin_prefetch(x + n + i); /* the next row, meanwhile */
                    if (job->kind != LEVELS) encode_even(job, x + at, width, inverse[b], *zero, here + at);
                }
                if (job->kind == LEVELS) encode_levels(job, x, inverse, here);
            }
            const int64_t count = (last - first) * n;
            if (job->order) put_in_order(codes, count, job->bits, job->order);
            pack(codes, count, job->bits, job->codes + g * bytes);
        }
        free(codes);
        free(buffer);
        free(inverse);
    }
    return bad;
}

/* 0; 2 where memory ran out. */
int kbit_dequantize(const Job *job) {
    const int64_t together = rows_together(job), groups = (job->rows + together - 1) / together, n = job->columns;
    const int64_t per_row = (n + job->block - 1) / job->block, bytes = packed_bytes(job, together * n);
    const Planes planes = planes_of(job->levels);
    int bad = 0;
    #pragma omp parallel num_threads(job->threads) reduction(| : bad)
    {
        uint8_t *codes = malloc((size_t)(together * n + 64));
        float *buffer = job->dtype == FP32 ? NULL : malloc((size_t)n * sizeof(float));
        if (!codes || (job->dtype != FP32 && !buffer)) bad |= 2;
        #pragma omp for schedule(dynamic, CHUNK)
        for (int64_t g = 0; g < groups; g++) {
            if (bad) continue;
            const int64_t first = g * together, last = first + together < job->rows ? first + together : job->rows;
            if (job->bits) unpack_bits(job->codes + g * bytes, (last - first) * n, job->bits, codes);
            else unpack_trits(job->codes + g * bytes, (last - first) * n, codes);
            for (int64_t row = first; row < last; row++) {
                float *x = job->dtype == FP32 ? (float *)job->out + row * n : buffer;
                decode_row(job, &planes, codes + (row - first) * n, job->scale + row * per_row, job->zero ? job->zero + row * per_row : NULL, x);
                if (job->dtype != FP32) write_as(job, buffer, row);
            }
        }
        free(codes);
        free(buffer);
    }
    return bad;
}
