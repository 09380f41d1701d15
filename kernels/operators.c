/* Operators of onnxruntime for a BERT-like encoder in INT8.

   Each does in one pass over memory what takes onnxruntime's operators five to ten, and writes the codes that the next
   product reads. Rows are tokens of one text after the other; all texts of a run have one length.

     Embed(ids, words, word_scales, channel_scales, places, gain, shift, CODING) -> y, codes, rest   attribute: epsilon
         y = LayerNormalization(words[id] channel_scales word_scales[id] + places[token])
     Linear(PRODUCT) -> y
     AttentionQuantize(qkv, ids) -> codes, rest                                        attributes: heads, alpha
         codes of softmax(alpha Q K^T) V of each head; of ids the shape counts
     LinearAddNormalize(PRODUCT, stream, gain, shift, ids) -> y                        attribute: epsilon
     LinearAddNormalizeQuantize(PRODUCT, stream, gain, shift, CODING) -> y, codes, rest    attribute: epsilon
         y = LayerNormalization(product + stream)
     LinearGeluQuantize(PRODUCT, CODING) -> codes, rest
         codes of Gelu(product)
     Quantize(x, CODING) -> codes, rest

   CODING stands for (factor, outlier_channels): z = y factor, with one factor a channel, 0 for outlier channels. The
   range of each row is its own, so that a row's codes depend on nothing but the row:

         lowest = min z,  scale = (max z - lowest) / 191,  codes = round((z - lowest) / scale)
         rest = (scale, lowest, the outlier channels of y)

   PRODUCT stands for (codes, rest, weight, sums, scale, bias, rest_weight) of a layer of so many inputs and columns:

         product = codes W (rest[0] scale) + bias + rest[1:] rest_weight        scale, bias: one a column

   codes W in exact integers; sums are those of the columns of W. The first row of rest_weight is sums scale, by which
   the lowest value counts, the others are the float32 weights of the outlier channels. weight is W of int8, shape
   (columns / 32, 32 inputs), in the order in which the products read it: block of 32 columns, four inputs, column,
   input. Weights of one sign of the inputs i, i + 1, i + 4 and i + 5, i even, add up to at most 171 in magnitude
   (quantize/linear.py tells why). */

#include "arithmetic.h"
#include "onnxruntime.h"

#include <stdlib.h>
#include <string.h>
#define EXPORT __attribute__((visibility("default")))

#ifdef __x86_64__
#include <cpuid.h>
#elif defined __linux__
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

enum { HEADS = 1, ALPHA = 2, EPSILON = 4, MOST_INPUTS = 12 };

typedef struct Definition Definition;

typedef struct Tensor {
    const void *data;
    int64_t sizes[2]; /* of one axis the second is 1, of none both */
} Tensor;

/* What onnxruntime makes of a node. The data of an input that is no constant is NULL. */
typedef struct Kernel {
    const Definition *definition;
    const Api *api;
    const Arithmetic *arithmetic;
    int64_t heads;
    float alpha, epsilon;
    Tensor constants[MOST_INPUTS];
} Kernel;

/* Inputs and outputs of one run of a node. The first error is kept, and all that follows does nothing. */
typedef struct Run {
    const Kernel *kernel;
    KernelContext *context;
    Status *error;
    Tensor inputs[MOST_INPUTS];
} Run;

struct Definition {
    Operator operator;
    const char *name;
    size_t input_count, output_count;
    int inputs[MOST_INPUTS], outputs[3];
    unsigned attributes;
    void (*compute)(Run *);
};

static Status *read_tensor(const Api *api, const Value *value, Tensor *tensor) {
    Shape *shape = NULL;
    size_t axes = 0;
    void *data = NULL;
    tensor->sizes[0] = tensor->sizes[1] = 1;
    Status *error = api->GetTensorTypeAndShape(value, &shape);
    if (!error) error = api->GetDimensionsCount(shape, &axes);
    if (!error && axes > 2) error = api->CreateStatus(FAIL, "an input has more than two axes");
    if (!error) error = api->GetDimensions(shape, tensor->sizes, axes);
    if (!error) error = api->GetTensorMutableData((Value *)value, &data);
    if (shape) api->ReleaseTensorTypeAndShapeInfo(shape);
    tensor->data = data;
    return error;
}

static void read_inputs(Run *run) {
    const Kernel *kernel = run->kernel;
    for (size_t i = 0; !run->error && i < kernel->definition->input_count; i++) {
        const Value *value = NULL;
        if (kernel->constants[i].data) {
            run->inputs[i] = kernel->constants[i];
            continue;
        }
        run->error = kernel->api->KernelContext_GetInput(run->context, i, &value);
        if (!run->error) run->error = read_tensor(kernel->api, value, &run->inputs[i]);
    }
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

static int has_shape(const Tensor *tensor, int64_t rows, int64_t columns) {
    return tensor->sizes[0] == rows && tensor->sizes[1] == columns;
}

/* Of the inputs (gain, shift). */
static Normalization normalization_of(Run *run, const Tensor *inputs) {
    const int64_t size = inputs[0].sizes[0];
    check(run, size > 0 && size % LANES == 0, "the channels are not a multiple of 16");
    check(run, has_shape(&inputs[0], size, 1) && has_shape(&inputs[1], size, 1), "shift and gain differ in channels");
    return (Normalization){
        .size = size,
        .epsilon = run->kernel->epsilon,
        .gain = inputs[0].data,
        .shift = inputs[1].data,
    };
}

/* Of the inputs (factor, outlier_channels), into the outputs from `output` on. */
static Coding coding_of(Run *run, const Tensor *inputs, size_t output, int64_t rows, int64_t size) {
    const int64_t outliers = inputs[1].sizes[0];
    Coding of = {
        .size = size,
        .outlier_count = outliers,
        .factor = inputs[0].data,
        .outlier_channels = inputs[1].data,
    };
    check(run, size % LANES == 0, "the channels are not a multiple of 16");
    check(run, has_shape(&inputs[0], size, 1), "the channels are not as many as factors");
    check(run, has_shape(&inputs[1], outliers, 1), "the outlier channels are not a list");
    for (int64_t i = 0; !run->error && i < outliers; i++)
        check(run, of.outlier_channels[i] >= 0 && of.outlier_channels[i] < size, "no such channel");
    of.codes = output_of(run, output, (int64_t[]){rows, size}, 2);
    of.rest = output_of(run, output + 1, (int64_t[]){rows, OUTLIERS + outliers}, 2);
    return of;
}

/* At the start of a line of the cache, in whole lines. */
static void *room_of(Run *run, int64_t bytes) {
    enum { LINE = 64 };
    void *room = run->error ? NULL : aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE);
    check(run, room != NULL, "out of memory");
    return room;
}

/* Of the inputs (codes, rest, weight, sums, scale, bias, rest_weight). Its room is the caller's to free. */
static Product product_of(Run *run) {
    const Tensor *codes = &run->inputs[0], *rest = &run->inputs[1], *weight = &run->inputs[2];
    const int64_t columns = weight->sizes[0] * BLOCK;
    check(run, codes->sizes[1] > 0 && codes->sizes[1] % LANES == 0, "the channels are not a multiple of 16");
    check(run, weight->sizes[1] == codes->sizes[1] * BLOCK, "codes and weight differ in channels");
    for (int i = 3; i < 6; i++)
        check(run, has_shape(&run->inputs[i], columns, 1), "sums, scale or bias and weight differ in columns");
    check(run, rest->sizes[0] == codes->sizes[0] && rest->sizes[1] >= OUTLIERS, "codes and rest differ in rows");
    check(run, has_shape(&run->inputs[6], rest->sizes[1] - LOWEST, columns), "rest and its weight differ");
    return (Product){
        .rows = codes->sizes[0],
        .size = codes->sizes[1],
        .columns = columns,
        .rest_size = rest->sizes[1],
        .codes = codes->data,
        .rest = rest->data,
        .weight = weight->data,
        .sums = run->inputs[3].data,
        .scale = run->inputs[4].data,
        .bias = run->inputs[5].data,
        .rest_weight = run->inputs[6].data,
        .room = run->kernel->arithmetic->needs_room ? room_of(run, PANEL * codes->sizes[1]) : NULL,
    };
}

enum { PRODUCT_INPUTS = 7 };

static void compute_embed(Run *run) {
    const Tensor *ids = &run->inputs[0], *words = &run->inputs[1], *places = &run->inputs[4];
    Embed of = {
        .texts = ids->sizes[0],
        .tokens = ids->sizes[1],
        .ids = ids->data,
        .words = words->data,
        .word_scales = run->inputs[2].data,
        .channel_scales = run->inputs[3].data,
        .places = places->data,
        .normalization = normalization_of(run, &run->inputs[5]),
    };
    const int64_t size = of.normalization.size, rows = of.texts * of.tokens;
    check(run, words->sizes[1] == size && places->sizes[1] == size, "tables and gain differ in channels");
    check(run, has_shape(&run->inputs[2], words->sizes[0], 1), "there is not one scale a word");
    check(run, has_shape(&run->inputs[3], size, 1), "there is not one scale a channel");
    check(run, of.tokens <= places->sizes[0], "a text has more tokens than there are places");
    for (int64_t i = 0; !run->error && i < rows; i++)
        check(run, of.ids[i] >= 0 && of.ids[i] < words->sizes[0], "a token id is not in the vocabulary");
    of.y = output_of(run, 0, (int64_t[]){rows, size}, 2);
    of.coding = coding_of(run, &run->inputs[7], 1, rows, size);
    if (!run->error) run->kernel->arithmetic->embed(&of);
}

static void compute_linear(Run *run) {
    const Product product = product_of(run);
    float *y = output_of(run, 0, (int64_t[]){product.rows, product.columns}, 2);
    if (!run->error) run->kernel->arithmetic->linear(&product, y);
    free(product.room);
}

static void linear_add_normalize(Run *run, int with_codes) {
    const Product product = product_of(run);
    const Tensor *stream = &run->inputs[PRODUCT_INPUTS], *rest = stream + 3;
    const int64_t rows = product.rows, size = product.columns;
    AddNormalize of = {.stream = stream->data, .normalization = normalization_of(run, stream + 1)};
    Coding coding;
    check(run, of.normalization.size == size, "product and gain differ in channels");
    check(run, has_shape(stream, rows, size), "product and stream differ in shape");
    if (with_codes) {
        of.y = output_of(run, 0, (int64_t[]){rows, size}, 2);
        coding = coding_of(run, rest, 1, rows, size);
        of.coding = &coding;
    } else {
        const int64_t *ids = rest->sizes;
        check(run, ids[0] * ids[1] == rows, "token ids and rows differ in number");
        of.y = output_of(run, 0, (int64_t[]){ids[0], ids[1], size}, 3);
    }
    if (!run->error) run->kernel->arithmetic->linear_add_normalize(&product, &of);
    free(product.room);
}

static void compute_linear_add_normalize(Run *run) { linear_add_normalize(run, 0); }

static void compute_linear_add_normalize_quantize(Run *run) { linear_add_normalize(run, 1); }

static void compute_linear_gelu_quantize(Run *run) {
    const Product product = product_of(run);
    const Coding coding = coding_of(run, &run->inputs[PRODUCT_INPUTS], 0, product.rows, product.columns);
    float *room = room_of(run, PANEL * (product.columns + LANES) * (int64_t)sizeof(float));
    if (!run->error) run->kernel->arithmetic->linear_gelu_quantize(&product, &coding, room);
    free(room);
    free(product.room);
}

static void compute_quantize(Run *run) {
    const Tensor *x = &run->inputs[0];
    const Coding coding = coding_of(run, &run->inputs[1], 0, x->sizes[0], x->sizes[1]);
    if (!run->error) run->kernel->arithmetic->quantize(&coding, x->data, x->sizes[0]);
}

static void compute_attention_quantize(Run *run) {
    const int64_t *qkv = run->inputs[0].sizes, *ids = run->inputs[1].sizes;
    const int64_t heads = run->kernel->heads, channels = qkv[1] / 3;
    Attention of = {
        .texts = ids[0],
        .tokens = ids[1],
        .heads = heads,
        .size = heads > 0 ? channels / heads : 0,
        .alpha = run->kernel->alpha * 1.44269504f, /* log2 e: exp by powers of 2 */
        .qkv = run->inputs[0].data,
        .coding = {.size = channels},
    };
    check(run, of.size > 0 && of.size % LANES == 0, "the channels of a head are not a multiple of 16");
    check(run, qkv[0] == ids[0] * ids[1] && qkv[1] == 3 * heads * of.size,
          "queries, keys and values are not of the shape (tokens, 3 channels)");
    of.coding.codes = output_of(run, 0, (int64_t[]){qkv[0], channels}, 2);
    of.coding.rest = output_of(run, 1, (int64_t[]){qkv[0], OUTLIERS}, 2);
    of.room = room_of(run, attention_room(of.tokens, heads, of.size));
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

#ifdef __x86_64__
#define CPU_IS_TOO_OLD "this CPU has no AVX2: x86-64 needs AVX2 and FMA (Haswell, 2013, or newer)"
#else
#define CPU_IS_TOO_OLD "this CPU has no dot products: arm64 needs ARMv8.2's (Graviton2, 2019, or newer)"
#endif

typedef struct Instructions {
    const char *name;
    const Arithmetic *arithmetic;
} Instructions;

/* Those that this build has, the best first. */
static const Instructions known[] = {
#ifdef __x86_64__
    {"vnni", &arithmetic_vnni},
    {"avx512", &arithmetic_avx512},
    {"avx2", &arithmetic_avx2},
#else
    {"neon", &arithmetic_neon},
#endif
};
enum { KNOWN = sizeof known / sizeof *known };
#ifdef __x86_64__
#define NAMES "vnni, avx512, avx2"
#else
#define NAMES "neon"
#endif

/* The place in `known` of the best that this CPU has; KNOWN if it has none. Intel's manual, volume 1, 14.3, 14.5.3,
   15.2: what the CPU has, and what the system saves. */
static size_t best_of_this_cpu(void) {
#ifdef __x86_64__
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX2 = 1 << 5, YMM = 0x6, ZMM = 0xe6 };
    enum { VNNI = 1 << 11 };
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    unsigned a, b, c, d, saved, saved_high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || ~c & (FMA | OSXSAVE)) return KNOWN;
    __asm__("xgetbv" : "=a"(saved), "=d"(saved_high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || ~b & AVX2 || ~saved & YMM) return KNOWN;
    if (~b & avx512 || ~saved & ZMM) return 2;
    return c & VNNI ? 0 : 1;
#elif defined __linux__
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? 0 : KNOWN;
#else
    return 0; /* all of Apple's */
#endif
}

/* Those in use: the best there are, or those that KERNELS_INSTRUCTIONS names. */
static const Instructions *in_use;

/* What is wrong with the CPU or with the variable; NULL if nothing. */
static const char *choose_instructions(void) {
    const char *wanted = getenv("KERNELS_INSTRUCTIONS");
    const size_t best = best_of_this_cpu();
    if (best == KNOWN) return CPU_IS_TOO_OLD;
    if (!wanted || !*wanted) {
        in_use = &known[best];
        return NULL;
    }
    for (size_t i = 0; i < KNOWN; i++) {
        if (strcmp(wanted, known[i].name) != 0) continue;
        if (i < best) return "this CPU does not have the instructions that KERNELS_INSTRUCTIONS names: unset it";
        in_use = &known[i];
        return NULL;
    }
    return "KERNELS_INSTRUCTIONS must be one of " NAMES ", or unset for the best that the CPU has";
}

static Status *create(const Operator *operator, const Api *api, const KernelInfo *info, void **made) {
    Kernel *kernel = calloc(1, sizeof *kernel);
    if (!kernel) return api->CreateStatus(FAIL, "out of memory");
    *kernel = (Kernel){.definition = definition_of(operator), .api = api, .arithmetic = in_use->arithmetic};
    const unsigned attributes = kernel->definition->attributes;
    Status *error = NULL;
    if (attributes & HEADS) error = api->KernelInfoGetAttribute_int64(info, "heads", &kernel->heads);
    if (!error && attributes & ALPHA) error = api->KernelInfoGetAttribute_float(info, "alpha", &kernel->alpha);
    if (!error && attributes & EPSILON) error = api->KernelInfoGetAttribute_float(info, "epsilon", &kernel->epsilon);
    for (size_t i = 0; !error && i < kernel->definition->input_count; i++) {
        const Value *value = NULL;
        int is_constant = 0;
        error = api->KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value);
        if (!error && is_constant) error = read_tensor(api, value, &kernel->constants[i]);
    }
    if (error)
        free(kernel);
    else
        *made = kernel;
    return error;
}

static Status *compute(void *kernel, KernelContext *context) {
    Run run = {.kernel = kernel, .context = context};
    read_inputs(&run);
    if (!run.error) run.kernel->definition->compute(&run);
    return run.error;
}

/* clang-format off */
#define OPERATOR                                                                                                      \
    {                                                                                                                 \
        .version = 16, .GetName = name_of, .GetExecutionProviderType = provider_of, .GetInputType = input_type,       \
        .GetInputTypeCount = input_count, .GetOutputType = output_type, .GetOutputTypeCount = output_count,           \
        .KernelDestroy = free, .GetInputCharacteristic = as_usual, .GetOutputCharacteristic = as_usual,               \
        .GetInputMemoryType = as_usual, .CreateKernelV2 = create, .KernelComputeV2 = compute,                         \
    }

#define PRODUCT UINT8, FLOAT, INT8, INT32, FLOAT, FLOAT, FLOAT
#define CODING FLOAT, INT64

static const Definition definitions[] = {
    {
        OPERATOR, "Embed", 9, 3, {INT64, INT8, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, CODING}, {FLOAT, UINT8, FLOAT},
        EPSILON, compute_embed,
    },
    {
        OPERATOR, "AttentionQuantize", 2, 2, {FLOAT, INT64}, {UINT8, FLOAT},
        HEADS | ALPHA, compute_attention_quantize,
    },
    {
        OPERATOR, "Linear", 7, 1, {PRODUCT}, {FLOAT},
        0, compute_linear,
    },
    {
        OPERATOR, "LinearAddNormalize", 11, 1, {PRODUCT, FLOAT, FLOAT, FLOAT, INT64}, {FLOAT},
        EPSILON, compute_linear_add_normalize,
    },
    {
        OPERATOR, "LinearAddNormalizeQuantize", 12, 3, {PRODUCT, FLOAT, FLOAT, FLOAT, CODING}, {FLOAT, UINT8, FLOAT},
        EPSILON, compute_linear_add_normalize_quantize,
    },
    {
        OPERATOR, "LinearGeluQuantize", 9, 2, {PRODUCT, CODING}, {UINT8, FLOAT},
        0, compute_linear_gelu_quantize,
    },
    {
        OPERATOR, "Quantize", 3, 2, {FLOAT, CODING}, {UINT8, FLOAT},
        0, compute_quantize,
    },
};
/* clang-format on */

/* What onnxruntime calls in a library of operators. The options tell which instructions are in use. */
EXPORT Status *RegisterCustomOps(SessionOptions *options, const ApiBase *base) {
    static Domain *domain; /* of all sessions, and never released: they may outlive one another */
    const Api *api = base->GetApi(16);
    const char *wrong = choose_instructions();
    if (wrong) return api->CreateStatus(FAIL, wrong);
    if (!domain) {
        Domain *made = NULL;
        Status *error = api->CreateCustomOpDomain("lambda.embeddings", &made);
        for (size_t i = 0; !error && i < sizeof definitions / sizeof *definitions; i++)
            error = api->CustomOpDomain_Add(made, &definitions[i].operator);
        if (error) return error;
        domain = made;
    }
    Status *error = api->AddSessionConfigEntry(options, "kernels.instructions", in_use->name);
    return error ? error : api->AddCustomOpDomain(options, domain);
}
