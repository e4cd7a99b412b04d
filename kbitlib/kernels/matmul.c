/* y = x W^T from packed k-bit weights on the CPU: any codebook of up to 2^k levels, k = 1..8, scales and zeros by block.

   Compiled by cpu.py on first use; layout.py says how tiles lie. One vector of 64 bytes is a step: 16 rows by 4 columns,
   row r's in bytes 4 r to 4 r + 3. Codes are brought there by a shift, looked up byte by byte in registers, and
   multiplied with four inputs that are broadcast: as bfloat16 (two products a lane and instruction), float32, or int8.
   Products of a segment, at most 256 columns of one block, are added up before the scale is applied once.

   Every row of the weight is computed by one thread, always in the same order: results do not depend on the number of
   threads, and are the same from run to run. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#define WIDE 1
#endif
#if defined(WIDE) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifdef _OPENMP
#include <omp.h>
static int thread_number(void) { return omp_get_thread_num(); }
#else
static int thread_number(void) { return 0; }
#endif

#define ALWAYS static inline __attribute__((always_inline))

enum { FP32, FP16, BF16, BYTES };               /* types of scales; of minima the first three */
enum { NONE, MASKS, MINIMA };                   /* zeros */
enum { ROWS = 16, COLUMNS = 32, STEPS = 8 };    /* of a tile; steps are four columns */
enum { SEGMENT = 8 };                           /* tiles after which sums are scaled, at most */
enum { AT_ONCE = 12 };                          /* rows of x that are multiplied with a decoded segment together, at most */
enum { LEAST = 1 << 16 };                       /* products that are worth a second thread */
enum { MANY = 192 };                            /* rows of x that are multiplied with all of the weight before the next */
enum { APART = 16 };                            /* floats between decoded rows */
enum { AHEAD = 4096 };                          /* bytes of codes fetched before they are needed */

typedef struct {
    const void *x;                              /* (batch, columns filled up to tiles): bf16, float, or int8 */
    void *out;                                  /* (batch, rows): bf16 for bf16 x, else float */
    const uint8_t *codes;                       /* (groups, tiles, k, 16) words */
    const void *scales;                         /* (groups, blocks, 16), or one */
    const float *scale_levels, *outer;          /* NULL where there are none */
    const void *zeros;
    const float *levels;                        /* [2^k] */
    const float *x_scale;                       /* (batch,) of int8 x, else NULL */
    float unit, gain;                           /* all is multiplied with unit; levels with gain before they are rounded */
    int64_t batch, rows, columns, block;
    int32_t k, width;                           /* bytes of an element of x: 4, 2, 1 */
    int32_t scale_type, one_scale, zero_kind, zero_type, threads;
    /* found here */
    int64_t tiles, blocks;
    float *sums;                                /* (batch, blocks): of x, where zeros are subtracted */
    float offset;                               /* int8: what codes count from, with its sign turned */
} Product;

/* A loop of few rounds, written out so that what it indexes can live in registers. */
#define EACH(i, count) _Pragma("GCC unroll 48") for (int i = 0; i < (count); i++)

ALWAYS float float_of(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
ALWAYS uint32_t bits_of(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }

ALWAYS float half_of(uint16_t h) {
#if defined(__F16C__) && defined(WIDE)
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
#else
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    if (rest >= 0x0f800000) return float_of(sign | (rest + 0x70000000));           /* infinity, NaN */
    if (rest >= 0x00800000) return float_of(sign | (rest + 0x38000000));
    const float value = float_of(rest + 0x38800000) - float_of(0x38800000);        /* subnormal */
    return sign ? -value : value;
#endif
}

ALWAYS uint16_t bf16_of(float value) {
    const uint32_t bits = bits_of(value);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* no NaN: weights and levels are finite */
}

ALWAYS float loaded(const void *from, int64_t i, int type) {
    if (type == FP32) return ((const float *)from)[i];
    const uint16_t bits = ((const uint16_t *)from)[i];
    return type == FP16 ? half_of(bits) : float_of((uint32_t)bits << 16);
}

/* How many rows of x from row m on are multiplied together: their sums fill the registers. */
ALWAYS int rows_together(const Product *p, int64_t m) {
    const int most = p->width == 4 ? AT_ONCE / 2 : AT_ONCE;
    return p->batch - m < most ? (int)(p->batch - m) : most;
}

ALWAYS float input_of(const Product *p, int64_t i) {
    if (p->width == 4) return ((const float *)p->x)[i];
    return p->width == 1 ? ((const int8_t *)p->x)[i] : float_of((uint32_t)((const uint16_t *)p->x)[i] << 16);
}

/* The scales of block b of a group's 16 rows, and what is to be added for each unit that x sums to. */
static void scales_of(const Product *p, int64_t group, int64_t b, float *scale, float *offset) {
    const int64_t at = (group * p->blocks + b) * ROWS;
    for (int r = 0; r < ROWS; r++) {
        if (p->one_scale) scale[r] = loaded(p->scales, 0, p->scale_type);
        else if (p->scale_type != BYTES) scale[r] = loaded(p->scales, at + r, p->scale_type);
        else scale[r] = p->scale_levels[((const uint8_t *)p->scales)[at + r]];
    }
    if (p->outer)
        for (int r = 0; r < ROWS && group * ROWS + r < p->rows; r++)
            scale[r] = scale[r] * p->outer[1 + ((group * ROWS + r) * p->blocks + b) / 256] + p->outer[0];
    for (int r = 0; r < ROWS; r++) offset[r] = p->offset * scale[r];
    if (p->zero_kind == MASKS)
        for (int r = 0; r < ROWS; r++) {
            int zero = 0;
            for (int j = 0; j < p->k; j++) zero |= (((const uint16_t *)p->zeros)[(group * p->blocks + b) * p->k + j] >> r & 1) << j;
            offset[r] = (p->offset - (float)zero) * scale[r];
        }
    if (p->zero_kind == MINIMA)
        for (int r = 0; r < ROWS; r++) offset[r] += loaded(p->zeros, at + r, p->zero_type);
}

#ifdef WIDE
typedef __m512i Bytes;
typedef __m512 Floats;
typedef struct { Bytes part[4][4]; } Tables; /* bytes of levels, the lowest first: 64 a register, few are repeated */

static Tables tables_of(const Product *p) {
    uint8_t bytes[4][256] = {{0}};
    const int levels = 1 << p->k;
    for (int i = 0; i < (levels < 64 ? 64 : levels); i++)
        for (int b = 0; b < 4; b++) {
            if (i >= levels) { bytes[b][i] = bytes[b][i - levels]; continue; }
            const uint32_t bits = p->width == 2 ? bf16_of(p->levels[i] * p->gain) : bits_of(p->levels[i]);
            bytes[b][i] = (uint8_t)(bits >> (8 * b));
        }
    Tables tables;
    for (int b = 0; b < 4; b++) for (int i = 0; i < 4; i++) tables.part[b][i] = _mm512_loadu_si512(bytes[b] + 64 * i);
    return tables;
}

/* Bits that stand at `from` in their bytes, brought to `to`; others come along. */
ALWAYS Bytes moved(Bytes v, const int from, const int to) {
    return from > to ? _mm512_srli_epi16(v, (unsigned)(from - to)) : from < to ? _mm512_slli_epi16(v, (unsigned)(to - from)) : v;
}

/* Bits of `a` where the mask has ones, else of `b`. */
ALWAYS Bytes chosen(const int mask, Bytes a, Bytes b) { return _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)mask), a, b, 0xca); }

/* The codes of step s of a tile, one a byte; what stands above their k bits is left as it is. */
ALWAYS Bytes codes_of(const Bytes *word, const int s, const int k) {
    if (k == 8) return word[s];
    if (k == 1) return moved(word[0], s, 0);
    if (k <= 3) {
        const Bytes two = moved(word[s / 4], 2 * (s % 4), 0);
        return k == 2 ? two : chosen(0x03, two, moved(word[2], s, 2));
    }
    const Bytes four = moved(word[s / 2], 4 * (s % 2), 0);
    if (k == 4) return four;
    if (k == 5) return chosen(0x0f, four, moved(word[4], s, 4));
    const Bytes two = moved(word[4 + s / 4], 2 * (s % 4), 4);
    return chosen(0x0f, four, k == 6 ? two : chosen(0x30, two, moved(word[6], s, 6)));
}

/* One byte of the levels of 64 codes. */
ALWAYS Bytes looked_up(Bytes code, const Bytes *table, const int k) {
    if (k <= 6) return _mm512_permutexvar_epi8(code, table[0]);
    const Bytes first = _mm512_permutex2var_epi8(table[0], code, table[1]);
    if (k == 7) return first;
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), first, _mm512_permutex2var_epi8(table[2], code, table[3]));
}

/* The levels of a step, `width` vectors. Lane 4 L + i of vector v is row 4 L + v, column i (float32); rows 4 L + 2 v and
   the next, two columns a lane (bfloat16); row 4 L + i, four columns (int8). */
ALWAYS void levels_of(Bytes code, const Tables *tables, Bytes *out, const int k, const int width) {
    if (width == 1) {
        out[0] = k == 8 ? code : _mm512_and_si512(code, _mm512_set1_epi8((char)((1 << k) - 1)));
        return;
    }
    const Bytes a = looked_up(code, tables->part[0], k), b = looked_up(code, tables->part[1], k);
    const Bytes low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
    if (width == 2) { out[0] = low; out[1] = high; return; }
    const Bytes c = looked_up(code, tables->part[2], k), d = looked_up(code, tables->part[3], k);
    const Bytes low2 = _mm512_unpacklo_epi8(c, d), high2 = _mm512_unpackhi_epi8(c, d);
    out[0] = _mm512_unpacklo_epi16(low, low2);
    out[1] = _mm512_unpackhi_epi16(low, low2);
    out[2] = _mm512_unpacklo_epi16(high, high2);
    out[3] = _mm512_unpackhi_epi16(high, high2);
}

/* Four inputs, again and again. */
ALWAYS Bytes inputs(const uint8_t *x, const int width) {
    if (width == 4) return _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)x));
    if (width == 2) { int64_t four; memcpy(&four, x, 8); return _mm512_set1_epi64(four); }
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

ALWAYS Bytes multiplied(Bytes sum, Bytes level, Bytes x, const int width) {
    if (width == 4) return _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(level), _mm512_castsi512_ps(x), _mm512_castsi512_ps(sum)));
    if (width == 1) return _mm512_dpbusd_epi32(sum, level, x);
#ifdef __AVX512BF16__
    return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), (__m512bh)level, (__m512bh)x));
#else
    return sum; /* cpu.py gives float32 */
#endif
}

ALWAYS Floats as_floats(Bytes sum, const int width) { return width == 1 ? _mm512_cvtepi32_ps(sum) : _mm512_castsi512_ps(sum); }

ALWAYS Bytes added(Bytes a, Bytes b, const int width) {
    if (width == 1) return _mm512_add_epi32(a, b);
    return _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
}

/* 16 scales laid out as the sums of vector v. */
ALWAYS Floats spread(Floats scale, const int v, const int width) {
    if (width == 1) return scale;
    if (width == 4) return v == 0 ? _mm512_permute_ps(scale, 0x00) : v == 1 ? _mm512_permute_ps(scale, 0x55) : v == 2 ? _mm512_permute_ps(scale, 0xaa) : _mm512_permute_ps(scale, 0xff);
    return v == 0 ? _mm512_permute_ps(scale, 0x50) : _mm512_permute_ps(scale, 0xfa);
}

/* The sums of 16 rows. */
ALWAYS Floats rows_of(const Floats *sum, const int width) {
    if (width == 1) return sum[0];
    if (width == 2) /* lanes of a pair stand side by side */
        return _mm512_add_ps(_mm512_shuffle_ps(sum[0], sum[1], 0x88), _mm512_shuffle_ps(sum[0], sum[1], 0xdd));
    const Floats a = _mm512_add_ps(_mm512_unpacklo_ps(sum[0], sum[1]), _mm512_unpackhi_ps(sum[0], sum[1]));
    const Floats b = _mm512_add_ps(_mm512_unpacklo_ps(sum[2], sum[3]), _mm512_unpackhi_ps(sum[2], sum[3]));
    const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
}

ALWAYS Floats sixteen(const void *from, int64_t at, const int type) {
    if (type == FP32) return _mm512_loadu_ps((const float *)from + at);
    const __m256i bits = _mm256_loadu_si256((const void *)((const uint16_t *)from + at));
    return type == FP16 ? _mm512_cvtph_ps(bits) : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/* `scales_of` in registers, for the common kinds. */
ALWAYS void scales_in(const Product *p, int64_t group, int64_t b, Floats *scale, Floats *offset) {
    const int64_t at = (group * p->blocks + b) * ROWS;
    if (p->outer || p->one_scale) {
        float scales[ROWS], offsets[ROWS];
        scales_of(p, group, b, scales, offsets);
        *scale = _mm512_loadu_ps(scales);
        *offset = _mm512_loadu_ps(offsets);
        return;
    }
    if (p->scale_type == BYTES)
        *scale = _mm512_i32gather_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)((const uint8_t *)p->scales + at))), p->scale_levels, 4);
    else *scale = sixteen(p->scales, at, p->scale_type);
    Floats zero = _mm512_set1_ps(p->offset);
    if (p->zero_kind == MASKS) {
        const uint16_t *mask = (const uint16_t *)p->zeros + (group * p->blocks + b) * p->k;
        for (int j = 0; j < p->k; j++) zero = _mm512_mask_sub_ps(zero, mask[j], zero, _mm512_set1_ps((float)(1 << j)));
    }
    *offset = _mm512_mul_ps(zero, *scale);
    if (p->zero_kind == MINIMA) *offset = _mm512_add_ps(*offset, sixteen(p->zeros, at, p->zero_type));
}

/* Writes the 16 sums of row m of x. */
ALWAYS void written(const Product *p, int64_t group, int64_t m, Floats sum, const int width) {
    const int64_t at = m * p->rows + group * ROWS, left = p->rows - group * ROWS;
    const __mmask16 here = left < ROWS ? (__mmask16)((1u << left) - 1) : 0xffff;
    const float factor = (width == 2 ? p->unit / p->gain : p->unit) * (width == 1 ? p->x_scale[m] : 1);
    sum = _mm512_mul_ps(sum, _mm512_set1_ps(factor));
#ifdef __AVX512BF16__
    if (width == 2) { _mm256_mask_storeu_epi16((uint16_t *)p->out + at, here, (__m256i)_mm512_cvtneps_pbh(sum)); return; }
#endif
    _mm512_mask_storeu_ps((float *)p->out + at, here, sum);
}

/* Steps `first` to `last` of `count` tiles, decoded one by one and given to what stands last, as `level`. */
#define DECODE(codes, count, first, last, ...)                                              \
    for (int64_t tile = 0; tile < count; tile++) {                                          \
        Bytes word[8], level[4];                                                            \
        for (int j = 0; j < k; j++) word[j] = _mm512_loadu_si512((codes) + 64 * (k * tile + j)); \
        for (int j = 0; j < k; j++) _mm_prefetch((const char *)(codes) + AHEAD + 64 * (k * tile + j), _MM_HINT_T0); \
        _Pragma("GCC unroll 8") for (int s = first; s < last; s++) {                        \
            levels_of(codes_of(word, s, k), tables, level, k, width);                       \
            __VA_ARGS__                                                                     \
        }                                                                                   \
    }

/* A segment times one row of x: levels go from where they are looked up straight into the products. */
ALWAYS void one_row(const Tables *tables, const uint8_t *codes, int64_t tiles, const uint8_t *x, Floats scale, Floats *total, const int first, const int last, const int k, const int width) {
    Bytes sum[2][4]; /* even and odd steps: a sum is not ready for the next product at once */
    EACH(v, width) sum[0][v] = sum[1][v] = _mm512_setzero_si512();
    DECODE(codes, tiles, first, last, {
        const Bytes four = inputs(x + (COLUMNS * tile + 4 * s) * width, width);
        EACH(v, width) sum[s % 2][v] = multiplied(sum[s % 2][v], level[v], four, width);
    })
    EACH(v, width) total[v] = _mm512_fmadd_ps(as_floats(added(sum[0][v], sum[1][v], width), width), spread(scale, v, width), total[v]);
}

ALWAYS Bytes *decoded(const Tables *tables, const uint8_t *codes, int64_t tiles, Bytes *to, const int first, const int last, const int k, const int width) {
    DECODE(codes, tiles, first, last, {
        for (int v = 0; v < width; v++) *to++ = level[v];
    })
    return to;
}

/* A decoded segment times `rows` rows of x, whose fours of columns lie side by side. */
ALWAYS void some_rows(const Bytes *level, const Bytes *end, const uint8_t *x, Floats scale, Floats *total, const int rows, const int width) {
    Bytes sum[AT_ONCE * 4];
    EACH(i, rows * width) sum[i] = _mm512_setzero_si512();
    for (; level < end; level += width, x += rows * 4 * width)
        EACH(m, rows) {
            const Bytes four = inputs(x + m * 4 * width, width);
            EACH(v, width) sum[m * width + v] = multiplied(sum[m * width + v], level[v], four, width);
        }
    EACH(i, rows * width) total[i] = _mm512_fmadd_ps(as_floats(sum[i], width), spread(scale, i % width, width), total[i]);
}

/* A decoded segment, whose first column is `at`, times all rows of x. */
ALWAYS void all_rows(const Product *p, const Bytes *level, const Bytes *end, int64_t at, Floats scale, Floats *total, const int width) {
    const int64_t columns = p->tiles * COLUMNS;
    for (int64_t m = 0; m < p->batch;) {
        const int rows = rows_together(p, m);
        const uint8_t *from = (const uint8_t *)p->x + (m * columns + at * rows) * width;
        Floats *to = total + m * width;
        switch (rows) {
            case 1: some_rows(level, end, from, scale, to, 1, width); break;
            case 2: some_rows(level, end, from, scale, to, 2, width); break;
            case 3: some_rows(level, end, from, scale, to, 3, width); break;
            case 4: some_rows(level, end, from, scale, to, 4, width); break;
            case 5: some_rows(level, end, from, scale, to, 5, width); break;
            case 6: some_rows(level, end, from, scale, to, 6, width); break;
            case 7: some_rows(level, end, from, scale, to, 7, width); break;
            case 8: some_rows(level, end, from, scale, to, 8, width); break;
            case 9: some_rows(level, end, from, scale, to, 9, width); break;
            case 10: some_rows(level, end, from, scale, to, 10, width); break;
            case 11: some_rows(level, end, from, scale, to, 11, width); break;
            default: some_rows(level, end, from, scale, to, AT_ONCE, width);
        }
        m += rows;
    }
}

static void all_rows_of_width(const Product *p, const Bytes *level, const Bytes *end, int64_t at, Floats scale, Floats *total) {
    if (p->width == 4) all_rows(p, level, end, at, scale, total, 4);
    else if (p->width == 2) all_rows(p, level, end, at, scale, total, 2);
    else all_rows(p, level, end, at, scale, total, 1);
}

/* 16 rows of the weight. total: width vectors a row of x, all zero; then one for zeros. `half`: blocks of half a tile. */
ALWAYS void group_of(const Product *p, const Tables *given, int64_t group, Floats *total, const int k, const int width, const int half) {
    const Tables copy = *given, *tables = &copy;
    const int64_t tiles_a_block = (p->block + COLUMNS - 1) / COLUMNS;
    Floats *zeros = total + p->batch * width, alone[5];
    for (int v = 0; v < 5; v++) alone[v] = _mm512_setzero_ps();
    Bytes segment[SEGMENT * STEPS * 4];
    for (int64_t b = 0; b < p->blocks; b++) {
        Floats scale, offset;
        scales_in(p, group, b, &scale, &offset);
        const int64_t begin = half ? b / 2 : b * tiles_a_block;
        const int64_t end = begin + tiles_a_block < p->tiles ? begin + tiles_a_block : p->tiles;
        for (int64_t tile = begin; tile < end; tile += SEGMENT) {
            const int64_t tiles = end - tile < SEGMENT ? end - tile : SEGMENT;
            const uint8_t *codes = p->codes + (group * p->tiles + tile) * 64 * k, *x = (const uint8_t *)p->x + tile * COLUMNS * width;
            if (p->batch == 1) {
                if (!half) one_row(tables, codes, tiles, x, scale, alone, 0, 8, k, width);
                else if (b % 2) one_row(tables, codes, tiles, x, scale, alone, 4, 8, k, width);
                else one_row(tables, codes, tiles, x, scale, alone, 0, 4, k, width);
            } else {
                const Bytes *last;
                if (!half) last = decoded(tables, codes, tiles, segment, 0, 8, k, width);
                else if (b % 2) last = decoded(tables, codes, tiles, segment, 4, 8, k, width);
                else last = decoded(tables, codes, tiles, segment, 0, 4, k, width);
                all_rows_of_width(p, segment, last, tile * COLUMNS + (half && b % 2) * COLUMNS / 2, scale, total);
            }
        }
        if (!p->sums) continue;
        if (p->batch == 1) alone[4] = _mm512_fmadd_ps(offset, _mm512_set1_ps(p->sums[b]), alone[4]);
        else for (int64_t m = 0; m < p->batch; m++) zeros[m] = _mm512_fmadd_ps(offset, _mm512_set1_ps(p->sums[m * p->blocks + b]), zeros[m]);
    }
    if (p->batch == 1) written(p, group, 0, _mm512_add_ps(rows_of(alone, width), alone[4]), width);
    else for (int64_t m = 0; m < p->batch; m++) written(p, group, m, _mm512_add_ps(rows_of(total + m * width, width), zeros[m]), width);
}

/* 16 rows of the weight itself, float32, APART more than their tiles from one to the next: caches mind even distances. */
ALWAYS void weights_of(const Product *p, const Tables *tables, int64_t group, float *rows, const int k) {
    const int width = 4;
    const int64_t apart = p->tiles * COLUMNS + APART;
    Floats scale = _mm512_setzero_ps(), offset = scale;
    int64_t known = -1;
    DECODE(p->codes + group * p->tiles * 64 * k, p->tiles, 0, 8, {
        const int64_t at = tile * COLUMNS + 4 * s, b = at / p->block < p->blocks ? at / p->block : p->blocks - 1; /* what fills up has none */
        if (b != known) scales_in(p, group, known = b, &scale, &offset);
        EACH(v, 4) {
            Floats four = _mm512_mul_ps(_mm512_castsi512_ps(level[v]), spread(scale, v, 4));
            if (p->zero_kind != NONE) four = _mm512_add_ps(four, spread(offset, v, 4));
            float *to = rows + v * apart + at;
            _mm_storeu_ps(to, _mm512_castps512_ps128(four));
            _mm_storeu_ps(to + 4 * apart, _mm512_extractf32x4_ps(four, 1));
            _mm_storeu_ps(to + 8 * apart, _mm512_extractf32x4_ps(four, 2));
            _mm_storeu_ps(to + 12 * apart, _mm512_extractf32x4_ps(four, 3));
        }
    })
}

static void weights_wide(const Product *p, const void *tables, int64_t group, float *rows) {
    switch (p->k) {
#define WIDTH(K) case K: weights_of(p, tables, group, rows, K); break;
        WIDTH(1) WIDTH(2) WIDTH(3) WIDTH(4) WIDTH(5) WIDTH(6) WIDTH(7) WIDTH(8)
    }
}

/* One function for each k and type of x, so that shifts and tables are the compiler's to place. */
#define GROUP(K, WIDTH)                                                                                            \
    static void group_##K##_##WIDTH(const Product *p, const Tables *tables, int64_t group, Floats *total) {        \
        if (p->block == COLUMNS / 2 && p->blocks > 1) group_of(p, tables, group, total, K, WIDTH, 1);              \
        else group_of(p, tables, group, total, K, WIDTH, 0);                                                       \
    }
#define GROUPS(K) GROUP(K, 1) GROUP(K, 2) GROUP(K, 4)
GROUPS(1) GROUPS(2) GROUPS(3) GROUPS(4) GROUPS(5) GROUPS(6) GROUPS(7) GROUPS(8)

typedef void Group(const Product *, const Tables *, int64_t, Floats *);
#define BY_WIDTH(K) {group_##K##_1, group_##K##_2, group_##K##_4}
static Group *const group_functions[8][3] = {BY_WIDTH(1), BY_WIDTH(2), BY_WIDTH(3), BY_WIDTH(4), BY_WIDTH(5), BY_WIDTH(6), BY_WIDTH(7), BY_WIDTH(8)};

static void group_wide(const Product *p, const void *tables, int64_t group, void *scratch) {
    if (p->batch > 1) memset(scratch, 0, (size_t)(p->batch * (p->width + 1)) * sizeof(Floats));
    group_functions[p->k - 1][p->width / 2](p, tables, group, scratch);
}
#define group_function group_wide
#define GATHERS 1
#define weights_function weights_wide
#else
typedef float Eight __attribute__((vector_size(32))); /* what compilers turn into the vectors that there are */
typedef struct { float level[256]; uint8_t bytes[4][64]; } Tables; /* and the bytes of the first 64 */

static Tables tables_of(const Product *p) {
    Tables tables;
    for (int i = 0; i < 256; i++) {
        tables.level[i] = p->width == 1 ? (float)(i & ((1 << p->k) - 1)) : p->levels[i & ((1 << p->k) - 1)];
        for (int b = 0; i < 64 && b < 4; b++) tables.bytes[b][i] = (uint8_t)(bits_of(tables.level[i]) >> (8 * b));
    }
    return tables;
}

/* The codes of step s of a tile, one a byte. */
static void codes_of(const uint8_t *word, int s, int k, uint8_t *codes) {
    memset(codes, 0, 64);
    int first = 0, low = 0;
    for (int width = 8; width; width /= 2) {
        if (!(width & k)) continue;
        const uint8_t *from = word + 64 * (first + s * width / 8);
        const int shift = width * (s % (8 / width)), mask = (1 << width) - 1;
        for (int i = 0; i < 64; i++) codes[i] |= (uint8_t)((from[i] >> shift & mask) << low);
        first += width;
        low += width;
    }
}

#ifdef __AVX2__
/* One byte of the levels of 32 codes of at most six bits. */
ALWAYS __m256i looked_up(__m256i code, const uint8_t *table, const int k) {
    __m256i part[4];
    for (int i = 0; i < (k <= 4 ? 1 : 1 << (k - 4)); i++) {
        const __m256i sixteen = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(table + 16 * i)));
        part[i] = _mm256_shuffle_epi8(sixteen, _mm256_and_si256(code, _mm256_set1_epi8(15)));
    }
    if (k <= 4) return part[0];
    const __m256i bit4 = _mm256_slli_epi16(code, 3), lower = _mm256_blendv_epi8(part[0], part[1], bit4);
    return k == 5 ? lower : _mm256_blendv_epi8(lower, _mm256_blendv_epi8(part[2], part[3], bit4), _mm256_slli_epi16(code, 2));
}

ALWAYS void few_levels(const Tables *tables, const uint8_t *codes, float *level, const int k) {
    for (int half = 0; half < 2; half++, level += 32) {
        const __m256i code = _mm256_loadu_si256((const void *)(codes + 32 * half));
        __m256i byte[4];
        EACH(b, 4) byte[b] = looked_up(code, tables->bytes[b], k);
        const __m256i low = _mm256_unpacklo_epi8(byte[0], byte[1]), high = _mm256_unpackhi_epi8(byte[0], byte[1]);
        const __m256i low2 = _mm256_unpacklo_epi8(byte[2], byte[3]), high2 = _mm256_unpackhi_epi8(byte[2], byte[3]);
        const __m256i row0 = _mm256_unpacklo_epi16(low, low2), row1 = _mm256_unpackhi_epi16(low, low2);     /* and row 4 */
        const __m256i row2 = _mm256_unpacklo_epi16(high, high2), row3 = _mm256_unpackhi_epi16(high, high2); /* and row 7 */
        _mm256_storeu_si256((void *)level, _mm256_permute2x128_si256(row0, row1, 0x20));
        _mm256_storeu_si256((void *)(level + 8), _mm256_permute2x128_si256(row2, row3, 0x20));
        _mm256_storeu_si256((void *)(level + 16), _mm256_permute2x128_si256(row0, row1, 0x31));
        _mm256_storeu_si256((void *)(level + 24), _mm256_permute2x128_si256(row2, row3, 0x31));
    }
}
#endif

static void levels_of(const Tables *tables, const uint8_t *codes, float *level, int k) {
#ifdef __AVX2__
    if (k <= 4) { few_levels(tables, codes, level, 4); return; }
    if (k == 5) { few_levels(tables, codes, level, 5); return; }
    if (k == 6) { few_levels(tables, codes, level, 6); return; }
#endif
    for (int i = 0; i < 64; i++) level[i] = tables->level[codes[i]];
    (void)k;
}

/* 16 rows of the weight: sums of a row's four columns side by side, 64 for each row of x, in `total`; then 16 for zeros.
   Whole numbers of a segment stay below 2^24, so float32 holds their sums exactly. */
static void group_plain(const Product *p, const void *given, int64_t group, void *scratch) {
    const Tables *tables = given;
    Eight *total = scratch;
    float *zeros = (float *)(total + 8 * p->batch), scale[ROWS], offset[ROWS];
    const int half = p->block == COLUMNS / 2 && p->blocks > 1;
    const int64_t tiles_a_block = (p->block + COLUMNS - 1) / COLUMNS, columns = p->tiles * COLUMNS;
    memset(total, 0, (size_t)p->batch * (64 + ROWS) * sizeof(float));
    for (int64_t b = 0; b < p->blocks; b++) {
        scales_of(p, group, b, scale, offset);
        const int64_t begin = half ? b / 2 : b * tiles_a_block;
        const int64_t end = begin + tiles_a_block < p->tiles ? begin + tiles_a_block : p->tiles;
        for (int64_t tile = begin; tile < end; tile += SEGMENT) {
            union { float one[64]; Eight eight[8]; } level[SEGMENT * STEPS];
            const int first = half && b % 2 ? 4 : 0, last = half ? first + 4 : STEPS;
            const int64_t stop = tile + SEGMENT < end ? tile + SEGMENT : end;
            int steps = 0;
            for (int64_t t = tile; t < stop; t++)
                for (int s = first; s < last; s++, steps++) {
                    uint8_t codes[64];
                    codes_of(p->codes + (group * p->tiles + t) * 64 * p->k, s, p->k, codes);
                    levels_of(tables, codes, level[steps].one, p->k);
                }
            for (int64_t m = 0; m < p->batch; m++) {
                const int64_t at = m * columns + tile * COLUMNS + 4 * first;
                Eight sum[8] = {{0}};
                for (int s = 0; s < steps; s++) {
                    float x[4];
                    for (int i = 0; i < 4; i++) x[i] = input_of(p, at + 4 * s + i);
                    const Eight four = {x[0], x[1], x[2], x[3], x[0], x[1], x[2], x[3]};
                    EACH(v, 8) sum[v] += level[s].eight[v] * four;
                }
                EACH(v, 8) {
                    const float a = scale[2 * v], b = scale[2 * v + 1];
                    total[8 * m + v] += sum[v] * (Eight){a, a, a, a, b, b, b, b};
                }
            }
        }
        if (p->sums)
            for (int64_t m = 0; m < p->batch; m++)
                for (int r = 0; r < ROWS; r++) zeros[ROWS * m + r] += offset[r] * p->sums[m * p->blocks + b];
    }
    for (int64_t m = 0; m < p->batch; m++)
        for (int r = 0; r < ROWS && group * ROWS + r < p->rows; r++) {
            const float *four = (const float *)(total + 8 * m) + 4 * r, factor = p->unit * (p->width == 1 ? p->x_scale[m] : 1);
            ((float *)p->out)[m * p->rows + group * ROWS + r] = (four[0] + four[1] + four[2] + four[3] + zeros[ROWS * m + r]) * factor;
        }
}
#define group_function group_plain
#define GATHERS 0

static void weights_plain(const Product *p, const void *tables, int64_t group, float *rows) {
    const int64_t columns = p->tiles * COLUMNS;
    float scale[ROWS], offset[ROWS], level[64];
    uint8_t codes[64];
    for (int64_t at = 0, known = -1; at < columns; at += 4) {
        const int64_t b = at / p->block < p->blocks ? at / p->block : p->blocks - 1; /* what fills up the last tile has none */
        if (b != known) scales_of(p, group, known = b, scale, offset);
        codes_of(p->codes + (group * p->tiles + at / COLUMNS) * 64 * p->k, (int)(at % COLUMNS / 4), p->k, codes);
        levels_of(tables, codes, level, p->k);
        for (int i = 0; i < 64; i++) rows[i / 4 * (columns + APART) + at + i % 4] = level[i] * scale[i / 4] + offset[i / 4];
    }
}
#define weights_function weights_plain
#endif

/* What row m of x sums to in each block: 16 sums side by side, which compilers turn into vector code. */
static void sum_blocks(const Product *p, int64_t m) {
    for (int64_t b = 0; b < p->blocks; b++) {
        const int64_t begin = b * p->block, end = begin + p->block < p->columns ? begin + p->block : p->columns;
        float lane[16] = {0}, sum = 0;
        int64_t i = begin;
        for (; i + 16 <= end; i += 16) for (int j = 0; j < 16; j++) lane[j] += input_of(p, m * p->tiles * COLUMNS + i + j);
        for (; i < end; i++) lane[0] += input_of(p, m * p->tiles * COLUMNS + i);
        for (int j = 0; j < 16; j++) sum += lane[j];
        p->sums[m * p->blocks + b] = sum;
    }
}

/* A row of float32 inputs to int8: the data type int8 with one float32 scale a row, NaN where an input is not finite. */
static void round_row(const float *from, int64_t columns, int8_t *to, float *scale) {
    float lane[COLUMNS] = {0}, finite[COLUMNS] = {0}, largest = 0, nothing = 0; /* columns fill tiles */
    for (int64_t i = 0; i < columns; i += COLUMNS)
        for (int j = 0; j < COLUMNS; j++) {
            lane[j] = fabsf(from[i + j]) > lane[j] ? fabsf(from[i + j]) : lane[j];
            finite[j] += from[i + j] * 0;
        }
    for (int j = 0; j < COLUMNS; j++) {
        largest = lane[j] > largest ? lane[j] : largest;
        nothing += finite[j];
    }
    *scale = largest / 127.5f + nothing;
    const float inverse = *scale > 0 ? 1 / *scale : 0;
    for (int64_t i = 0; i < columns; i++) {
        float x = rintf(from[i] * inverse);
        x = x > -128 ? x : -128;
        to[i] = (int8_t)(x > 127 ? 127 : x);
    }
}

#define ALIGNED(bytes) aligned_alloc(64, (size_t)((bytes) + 63) / 64 * 64)

/* Rows of x that are multiplied together, from row m on: their fours of columns side by side. Rows as they come lie powers
   of two apart, which caches mind, and each would need an address. */
static void gather_rows(const Product *p, int64_t m, int rows, const char *x, char *to) {
    const int64_t columns = p->tiles * COLUMNS;
    const int four = 4 * p->width;
    to += m * columns * p->width;
    for (int64_t at = 0; at < columns; at += 4)
        for (int r = 0; r < rows; r++, to += four) memcpy(to, x + ((m + r) * columns + at) * p->width, (size_t)four);
}

static void find_blocks(Product *p) {
    p->tiles = (p->columns + COLUMNS - 1) / COLUMNS;
    p->blocks = (p->columns + p->block - 1) / p->block;
}

/* 0, or 1 where there is no memory. With 8-bit inputs x is float32 still, and rounded here. */
int kbit_linear(const Product *given) {
    Product local = *given, *p = &local;
    find_blocks(p);
    const int whole = p->width == 1, threads = p->rows * p->columns * p->batch >= LEAST ? p->threads : 1;
    const int64_t groups = (p->rows + ROWS - 1) / ROWS, columns = p->tiles * COLUMNS, batch = p->batch;
    const int64_t chunk = groups / (8 * threads) ? groups / (8 * threads) : 1; /* cores may be unlike */
    const int64_t most = batch < MANY ? batch : MANY, own = most * 5 * 64, shared = 4 * batch * (p->blocks + 1) + 64;
    const int64_t rounded_size = whole ? (batch * columns + 63) / 64 * 64 : 0, gathered_size = GATHERS && batch > 1 ? most * columns * p->width : 0;
    char *memory = ALIGNED(threads * own + shared + rounded_size + gathered_size);
    if (!memory) return 1;
    float *x_scale = (float *)(memory + threads * own);
    int8_t *rounded = (int8_t *)(memory + threads * own + shared / 64 * 64);
    char *gathered = (char *)rounded + rounded_size;
    const float *x = p->x;
    p->offset = whole ? p->levels[0] : 0;
    if (whole || p->zero_kind != NONE) p->sums = x_scale + batch;
    if (whole) { p->x = rounded; p->x_scale = x_scale; }
#pragma omp parallel for num_threads(threads) if (threads > 1 && batch > 1)
    for (int64_t m = 0; m < (p->sums ? batch : 0); m++) {
        if (whole) round_row(x + m * columns, columns, rounded + m * columns, x_scale + m);
        sum_blocks(p, m);
    }
    const Tables tables = tables_of(p);
    for (int64_t begin = 0; begin < batch; begin += MANY) {
        p->batch = batch - begin < most ? batch - begin : most;
        const char *from = p->x;
        if (GATHERS && batch > 1) {
            const int together = rows_together(p, 0);
#pragma omp parallel for num_threads(threads) if (threads > 1)
            for (int64_t m = 0; m < p->batch; m += together) gather_rows(p, m, rows_together(p, m), from, gathered);
            p->x = gathered;
        }
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads) if (threads > 1)
        for (int64_t group = 0; group < groups; group++) group_function(p, &tables, group, memory + own * thread_number());
        p->x = from + MANY * columns * p->width;
        p->out = (char *)p->out + MANY * p->rows * (p->width == 2 ? 2 : 4);
        if (p->sums) p->sums += MANY * p->blocks;
        if (whole) p->x_scale += MANY;
    }
    free(memory);
    return 0;
}

/* Rows `first`, a multiple of 16, to `last` of the weight itself: bfloat16 where width is 2, else float32. 0, or 1 where
   there is no memory. */
int kbit_decode(const Product *given, int64_t first, int64_t last) {
    Product local = *given, *p = &local;
    find_blocks(p);
    const int bf16 = p->width == 2, threads = (last - first) * p->columns >= LEAST ? p->threads : 1;
    const int64_t apart = p->tiles * COLUMNS + APART, own = ROWS * apart * 4;
    char *memory = ALIGNED(threads * own);
    if (!memory) return 1;
    p->width = 4;
    const Tables tables = tables_of(p);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t top = first; top < last; top += ROWS) {
        float *rows = (float *)(memory + own * thread_number());
        weights_function(p, &tables, top / ROWS, rows);
        for (int64_t r = top; r < top + ROWS && r < last; r++, rows += apart) {
            const int64_t at = (r - first) * p->columns;
            if (bf16) for (int64_t i = 0; i < p->columns; i++) ((uint16_t *)p->out)[at + i] = bf16_of(rows[i] * p->unit);
            else for (int64_t i = 0; i < p->columns; i++) ((float *)p->out)[at + i] = rows[i] * p->unit;
        }
    }
    free(memory);
    return 0;
}

/* Which types of x are multiplied as they are: bit 0 float32, bit 1 bfloat16; bit 2: in vector registers. */
int kbit_abilities(void) {
#if defined(WIDE) && defined(__AVX512BF16__)
    return 7;
#elif defined(WIDE)
    return 5;
#else
    return 1;
#endif
}
