/* Operators of onnxruntime for what lies between the INT8 products of a BERT-like encoder.

   Each does in one pass over memory what takes onnxruntime's operators five to ten, and writes the codes that the next
   INT8 product reads. Rows are tokens of one text after the other; all texts of a run have one length.

     Embed(ids, words, scales, places, gain, bias, factor, zero) -> y, codes               attribute: epsilon
         y = LayerNormalization(words[id] scales[id] + places[token])
     AttentionQuantize(qkv, ids, factor, zero) -> codes                          attributes: heads, alpha
         codes of softmax(alpha Q K^T) V of each head; of ids the shape counts
     AddNormalize(a, b, outliers, outlier_weight, gain, bias, ids) -> y                   attribute: epsilon
     AddNormalizeQuantize(a, b, outliers, outlier_weight, gain, bias, factor, zero) -> y, codes
         y = LayerNormalization(a + b + outliers outlier_weight)
     Quantize(x, factor, zero, outlier_channels) -> codes, outliers
         codes of x, and the channels that stay float32
     GeluQuantize(x, factor, zero, outlier_channels) -> codes, outliers
         the same of Gelu(x)

   codes = clip(round(y factor) + zero, 0, 255), with one factor a channel. */

#include "onnxruntime.h"

#include <stdlib.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#define EXPORT __attribute__((visibility("default")))

enum { LANES = 16 };
typedef float Floats __attribute__((ext_vector_type(LANES)));
typedef float Half __attribute__((ext_vector_type(LANES / 2)));
typedef float Quarter __attribute__((ext_vector_type(LANES / 4)));
typedef int32_t Ints __attribute__((ext_vector_type(LANES)));
typedef int8_t SignedBytes __attribute__((ext_vector_type(LANES)));
typedef uint8_t Bytes __attribute__((ext_vector_type(LANES)));

typedef struct Normalization {
    int64_t size;
    float epsilon, zero;
    const float *gain, *bias, *factor;
} Normalization;

typedef struct Embed {
    int64_t texts, tokens;
    const int64_t *ids;
    const int8_t *words;
    const float *scales, *places;
    Normalization normalization;
    float *y;
    uint8_t *codes;
} Embed;

typedef struct AddNormalize {
    int64_t rows, outlier_count;
    const float *a, *b, *outliers, *outlier_weight;
    Normalization normalization;
    float *y;
    uint8_t *codes;
} AddNormalize;

typedef struct Quantize {
    int64_t rows, size, outlier_count;
    const float *x, *factor;
    float zero;
    const int64_t *outlier_channels;
    uint8_t *codes;
    float *outliers;
} Quantize;

typedef struct Attention {
    int64_t texts, tokens, padded, heads, size;
    float alpha, zero;
    const float *qkv, *factor;
    uint8_t *codes;
    float *room;
} Attention;

typedef struct Arithmetic {
    void (*embed)(const Embed *);
    void (*add_normalize)(const AddNormalize *);
    void (*quantize)(const Quantize *);
    void (*gelu_quantize)(const Quantize *);
    void (*attend)(const Attention *);
} Arithmetic;

/* The blocks of attention fill the registers: ROWS x COLUMNS sums of scores and AVERAGES x 2 of averages, each of LANES
   floats, which are one register of AVX-512, two of AVX2 and four of NEON. */
#define TALLEST 8
#define WIDEST 2
#ifdef __x86_64__
#define ROWS TALLEST
#define COLUMNS WIDEST
#define AVERAGES 8
#define FUNCTION(name) name##_avx512
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#pragma clang attribute push(__attribute__((target(AVX512))), apply_to = function)
#include "arithmetic.h"
#pragma clang attribute pop
#undef FUNCTION
#undef ROWS
#undef COLUMNS
#undef AVERAGES
#define ROWS 4
#define COLUMNS 1
#define AVERAGES 2
#define FUNCTION(name) name##_avx2
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#include "arithmetic.h"
#pragma clang attribute pop
#else
#define ROWS 4
#define COLUMNS 1
#define AVERAGES 2
#define FUNCTION(name) name##_neon
#include "arithmetic.h"
#endif

typedef struct Definition Definition;

/* What onnxruntime makes of a node. */
typedef struct Kernel {
    const Definition *definition;
    const Api *api;
    const Arithmetic *arithmetic;
    int64_t heads;
    float alpha, epsilon;
} Kernel;

/* Inputs and outputs of one run of a node. The first error is kept, and all that follows does nothing. */
typedef struct Run {
    const Kernel *kernel;
    KernelContext *context;
    Status *error;
} Run;

enum { HEADS = 1, ALPHA = 2, EPSILON = 4 };

struct Definition {
    Operator operator;
    const char *name;
    size_t input_count, output_count;
    int inputs[8], outputs[2];
    unsigned attributes;
    void (*compute)(Run *);
};

static const Value *value_of(Run *run, size_t index) {
    const Value *value = NULL;
    if (!run->error) run->error = run->kernel->api->KernelContext_GetInput(run->context, index, &value);
    return value;
}

static const void *data_of(Run *run, size_t index) {
    void *data = NULL;
    Value *value = (Value *)value_of(run, index);
    if (!run->error) run->error = run->kernel->api->GetTensorMutableData(value, &data);
    return data;
}

/* The sizes of an input of one or two axes; of one axis the second is 1. */
static void shape_of(Run *run, size_t index, int64_t sizes[2]) {
    const Api *api = run->kernel->api;
    const Value *value = value_of(run, index);
    Shape *shape = NULL;
    size_t axes = 0;
    sizes[0] = sizes[1] = 1;
    if (!run->error) run->error = api->GetTensorTypeAndShape(value, &shape);
    if (!run->error) run->error = api->GetDimensionsCount(shape, &axes);
    if (!run->error && (axes < 1 || axes > 2)) run->error = api->CreateStatus(FAIL, "an input has not one or two axes");
    if (!run->error) run->error = api->GetDimensions(shape, sizes, axes);
    if (shape) api->ReleaseTensorTypeAndShapeInfo(shape);
}

static void *output_of(Run *run, size_t index, const int64_t *shape, size_t axes) {
    Value *value = NULL;
    void *data = NULL;
    if (!run->error) run->error = run->kernel->api->KernelContext_GetOutput(run->context, index, shape, axes, &value);
    if (!run->error) run->error = run->kernel->api->GetTensorMutableData(value, &data);
    return data;
}

static void check(Run *run, int holds, const char *otherwise) {
    if (!run->error && !holds) run->error = run->kernel->api->CreateStatus(FAIL, otherwise);
}

static float zero_of(Run *run, size_t index) {
    const uint8_t *zero = data_of(run, index);
    return run->error ? 0 : *zero;
}

static Normalization normalization_of(Run *run, size_t gain, int with_codes) {
    int64_t sizes[2], bias[2], factor[2] = {0};
    shape_of(run, gain, sizes);
    shape_of(run, gain + 1, bias);
    if (with_codes) shape_of(run, gain + 2, factor);
    check(run, sizes[0] % LANES == 0, "the channels are not a multiple of 16");
    check(run, bias[0] == sizes[0], "bias and gain differ in channels");
    check(run, !with_codes || factor[0] == sizes[0], "factor and gain differ in channels");
    return (Normalization){
        .size = sizes[0],
        .epsilon = run->kernel->epsilon,
        .gain = data_of(run, gain),
        .bias = data_of(run, gain + 1),
        .factor = with_codes ? data_of(run, gain + 2) : NULL,
        .zero = with_codes ? zero_of(run, gain + 3) : 0,
    };
}

static void compute_embed(Run *run) {
    int64_t ids[2], words[2], scales[2], places[2];
    shape_of(run, 0, ids);
    shape_of(run, 1, words);
    shape_of(run, 2, scales);
    shape_of(run, 3, places);
    Embed of = {
        .texts = ids[0],
        .tokens = ids[1],
        .ids = data_of(run, 0),
        .words = data_of(run, 1),
        .scales = data_of(run, 2),
        .places = data_of(run, 3),
        .normalization = normalization_of(run, 4, 1),
    };
    const int64_t size = of.normalization.size;
    check(run, words[1] == size && places[1] == size, "tables and gain differ in channels");
    check(run, scales[0] == words[0], "there is not one scale a word");
    check(run, of.tokens <= places[0], "a text has more tokens than there are places");
    for (int64_t i = 0; !run->error && i < of.texts * of.tokens; i++)
        check(run, of.ids[i] >= 0 && of.ids[i] < words[0], "a token id is not in the vocabulary");
    of.y = output_of(run, 0, (int64_t[]){of.texts * of.tokens, size}, 2);
    of.codes = output_of(run, 1, (int64_t[]){of.texts * of.tokens, size}, 2);
    if (!run->error) run->kernel->arithmetic->embed(&of);
}

static void add_normalize(Run *run, int with_codes) {
    int64_t a[2], b[2], outliers[2], weight[2];
    shape_of(run, 0, a);
    shape_of(run, 1, b);
    shape_of(run, 2, outliers);
    shape_of(run, 3, weight);
    AddNormalize of = {
        .rows = a[0],
        .outlier_count = weight[0],
        .a = data_of(run, 0),
        .b = data_of(run, 1),
        .outliers = data_of(run, 2),
        .outlier_weight = data_of(run, 3),
        .normalization = normalization_of(run, 4, with_codes),
    };
    const int64_t size = of.normalization.size;
    check(run, a[1] == size && b[0] == a[0] && b[1] == size && weight[1] == size, "addends and gain differ in shape");
    check(run, !weight[0] || (outliers[0] == a[0] && outliers[1] == weight[0]), "outliers and their weight differ");
    if (with_codes) {
        of.y = output_of(run, 0, (int64_t[]){of.rows, size}, 2);
        of.codes = output_of(run, 1, (int64_t[]){of.rows, size}, 2);
    } else {
        int64_t ids[2];
        shape_of(run, 6, ids);
        check(run, ids[0] * ids[1] == of.rows, "token ids and addends differ in number");
        of.y = output_of(run, 0, (int64_t[]){ids[0], ids[1], size}, 3);
    }
    if (!run->error) run->kernel->arithmetic->add_normalize(&of);
}

static void compute_add_normalize(Run *run) { add_normalize(run, 0); }

static void compute_add_normalize_quantize(Run *run) { add_normalize(run, 1); }

static void quantize(Run *run, int with_gelu) {
    int64_t x[2], factor[2], outliers[2];
    shape_of(run, 0, x);
    shape_of(run, 1, factor);
    shape_of(run, 3, outliers);
    Quantize of = {
        .rows = x[0],
        .size = x[1],
        .outlier_count = outliers[0],
        .x = data_of(run, 0),
        .factor = data_of(run, 1),
        .zero = zero_of(run, 2),
        .outlier_channels = data_of(run, 3),
    };
    check(run, of.size % LANES == 0 && factor[0] == of.size, "the channels are not as many as factors, or not 16 n");
    for (int64_t i = 0; !run->error && i < of.outlier_count; i++)
        check(run, of.outlier_channels[i] >= 0 && of.outlier_channels[i] < of.size, "no such channel");
    of.codes = output_of(run, 0, (int64_t[]){of.rows, of.size}, 2);
    of.outliers = output_of(run, 1, (int64_t[]){of.rows, of.outlier_count}, 2);
    const Arithmetic *arithmetic = run->kernel->arithmetic;
    if (!run->error) (with_gelu ? arithmetic->gelu_quantize : arithmetic->quantize)(&of);
}

static void compute_quantize(Run *run) { quantize(run, 0); }

static void compute_gelu_quantize(Run *run) { quantize(run, 1); }

static void compute_attention_quantize(Run *run) {
    int64_t qkv[2], ids[2], factor[2];
    shape_of(run, 0, qkv);
    shape_of(run, 1, ids);
    shape_of(run, 2, factor);
    const int64_t heads = run->kernel->heads, block = WIDEST * LANES;
    Attention of = {
        .texts = ids[0],
        .tokens = ids[1],
        .padded = (ids[1] + block - 1) / block * block,
        .heads = heads,
        .size = heads > 0 ? factor[0] / heads : 0,
        .alpha = run->kernel->alpha,
        .qkv = data_of(run, 0),
        .factor = data_of(run, 2),
        .zero = zero_of(run, 3),
    };
    check(run, of.size > 0 && of.size % LANES == 0, "the channels of a head are not a multiple of 16");
    check(run, qkv[0] == ids[0] * ids[1] && qkv[1] == 3 * factor[0] && factor[0] == heads * of.size,
          "queries, keys and values are not of the shape (tokens, 3 channels)");
    of.codes = output_of(run, 0, (int64_t[]){qkv[0], factor[0]}, 2);
    if (run->error) return;
    of.room = malloc((2 * of.size + TALLEST) * of.padded * sizeof(float));
    check(run, of.room != NULL, "out of memory");
    if (!run->error) run->kernel->arithmetic->attend(&of);
    free(of.room);
}

static const Definition *definition_of(const Operator *operator) { return (const Definition *)operator; }

static const char *name_of(const Operator *operator) { return definition_of(operator)->name; }

static const char *provider_of(const Operator *operator) { return NULL; } /* the CPU's */

static int input_type(const Operator *operator, size_t index) { return definition_of(operator)->inputs[index]; }

static size_t input_count(const Operator *operator) { return definition_of(operator)->input_count; }

static int output_type(const Operator *operator, size_t index) { return definition_of(operator)->outputs[index]; }

static size_t output_count(const Operator *operator) { return definition_of(operator)->output_count; }

static int as_usual(const Operator *operator, size_t index) { return 0; } /* required, in the default memory */

/* NULL if there is none. Intel's manual, volume 1, 14.3, 14.5.3, 15.2: what the CPU has, and what the system saves. */
static const Arithmetic *arithmetic_of_this_cpu(void) {
#ifdef __x86_64__
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX2 = 1 << 5, YMM = 0x6, ZMM = 0xe6 };
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    unsigned a, b, c, d, saved, saved_high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || ~c & (FMA | OSXSAVE)) return NULL;
    __asm__("xgetbv" : "=a"(saved), "=d"(saved_high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || ~b & AVX2 || ~saved & YMM) return NULL;
    return ~b & avx512 || ~saved & ZMM ? &arithmetic_avx2 : &arithmetic_avx512;
#else
    return &arithmetic_neon;
#endif
}

static Status *create(const Operator *operator, const Api *api, const KernelInfo *info, void **made) {
    Kernel *kernel = calloc(1, sizeof *kernel);
    if (!kernel) return api->CreateStatus(FAIL, "out of memory");
    *kernel = (Kernel){.definition = definition_of(operator), .api = api, .arithmetic = arithmetic_of_this_cpu()};
    const unsigned attributes = kernel->definition->attributes;
    Status *error = NULL;
    if (attributes & HEADS) error = api->KernelInfoGetAttribute_int64(info, "heads", &kernel->heads);
    if (!error && attributes & ALPHA) error = api->KernelInfoGetAttribute_float(info, "alpha", &kernel->alpha);
    if (!error && attributes & EPSILON) error = api->KernelInfoGetAttribute_float(info, "epsilon", &kernel->epsilon);
    if (error)
        free(kernel);
    else
        *made = kernel;
    return error;
}

static Status *compute(void *kernel, KernelContext *context) {
    Run run = {.kernel = kernel, .context = context};
    run.kernel->definition->compute(&run);
    return run.error;
}

#define OPERATOR                                                                                                      \
    {                                                                                                                 \
        .version = 16, .GetName = name_of, .GetExecutionProviderType = provider_of, .GetInputType = input_type,       \
        .GetInputTypeCount = input_count, .GetOutputType = output_type, .GetOutputTypeCount = output_count,           \
        .KernelDestroy = free, .GetInputCharacteristic = as_usual, .GetOutputCharacteristic = as_usual,               \
        .GetInputMemoryType = as_usual, .CreateKernelV2 = create, .KernelComputeV2 = compute,                         \
    }

static const Definition definitions[] = {
    {
        OPERATOR, "Embed", 8, 2, {INT64, INT8, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, UINT8}, {FLOAT, UINT8},
        EPSILON, compute_embed,
    },
    {
        OPERATOR, "AttentionQuantize", 4, 1, {FLOAT, INT64, FLOAT, UINT8}, {UINT8},
        HEADS | ALPHA, compute_attention_quantize,
    },
    {
        OPERATOR, "AddNormalize", 7, 1, {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, INT64}, {FLOAT},
        EPSILON, compute_add_normalize,
    },
    {
        OPERATOR, "AddNormalizeQuantize", 8, 2, {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, UINT8},
        {FLOAT, UINT8}, EPSILON, compute_add_normalize_quantize,
    },
    {
        OPERATOR, "Quantize", 4, 2, {FLOAT, FLOAT, UINT8, INT64}, {UINT8, FLOAT},
        0, compute_quantize,
    },
    {
        OPERATOR, "GeluQuantize", 4, 2, {FLOAT, FLOAT, UINT8, INT64}, {UINT8, FLOAT},
        0, compute_gelu_quantize,
    },
};

/* What onnxruntime calls in a library of operators. */
EXPORT Status *RegisterCustomOps(SessionOptions *options, const ApiBase *base) {
    static Domain *domain; /* of all sessions, and never released: they may outlive one another */
    const Api *api = base->GetApi(16);
    if (!arithmetic_of_this_cpu())
        return api->CreateStatus(FAIL, "this CPU has no AVX2: x86-64 needs AVX2 and FMA (Haswell, 2013, or newer)");
    if (!domain) {
        Domain *made = NULL;
        Status *error = api->CreateCustomOpDomain("lambda.embeddings", &made);
        for (size_t i = 0; !error && i < sizeof definitions / sizeof *definitions; i++)
            error = api->CustomOpDomain_Add(made, &definitions[i].operator);
        if (error) return error;
        domain = made;
    }
    return api->AddCustomOpDomain(options, domain);
}
