/* Operators of onnxruntime for a BERT-like encoder in INT8.

   Each does in one pass over memory what takes onnxruntime's operators five to ten, and writes the codes that the next
   product reads. Rows are tokens of one text after the other; all texts of a run have one length.

     Embed(ids, words, word_scales, channel_scales, positions, gamma, beta, CODING) -> y, codes, rest
                                                                                       attribute: epsilon
         y = LayerNormalization(words[id] channel_scales word_scales[id] + positions[token])
     EmbedAfterPadding, the same                                                       attributes: epsilon, padding
         positions[0] for the token id `padding`, positions[n] for the n-th other token of a text, n = 1, 2, ...
     Linear(PRODUCT) -> y
     AttentionQuantize(qkv, ids) -> codes, rest                                        attributes: heads, alpha
         codes of softmax(alpha Q K^T) V of each head; only the shape of ids counts
     AttentionBiasQuantize(qkv, ids, bias) -> codes, rest                              attributes: heads, alpha
         the same with 2^bias, of bias[head][query - key + positions - 1], as a factor before the sum of softmax
     LinearAddNormalize(PRODUCT, residual, gamma, beta, ids) -> y                      attribute: epsilon
     LinearAddNormalizeQuantize(PRODUCT, residual, gamma, beta, CODING) -> y, codes, rest
                                                                                       attribute: epsilon
         y = LayerNormalization(product + residual)
     LinearGeluQuantize(PRODUCT, CODING) -> codes, rest
         codes of Gelu(product)
     Quantize(x, CODING) -> codes, rest

   CODING stands for (factor, outlier_channels): z = y factor, with one factor a channel, 0 for outlier channels. The
   range of each row is its own, so that a row's codes depend on nothing but the row:

         lowest = min z,  scale = (max z - lowest) / 191,  codes = round((z - lowest) / scale)
         rest = (scale, lowest, the outlier channels of y)

   PRODUCT stands for (codes, rest, weight, sums, scale, bias, rest_weight) of a linear layer:

         product = codes W (rest[0] scale) + bias + rest[1:] rest_weight        scale, bias: one a column

   codes W in exact integers; sums are those of the columns of W. The first row of rest_weight is sums scale, by which
   the lowest value counts, the others are the float32 weights of the outlier channels. weight is W of int8, shape
   (columns / 32, 32 inputs), in the order in which the products read it: block of 32 columns, four inputs, column,
   input. Weights of one sign of the inputs i, i + 1, i + 4 and i + 5, i even, add up to at most 171 in magnitude
   (quantize/linear.py tells why).

   Words of this project: codes are quantized values, rest is what a row has beside its codes, outlier channels stay
   float32, a four are the inputs i, i + 1, i + 4 and i + 5. MR, NR and MC are those of BLIS (arithmetic.h). */

#include "arithmetic.h"
#include "onnxruntime.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define EXPORT __attribute__((visibility("default")))

#ifdef __x86_64__
#include <cpuid.h>
#elif defined __linux__
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

enum { HEADS = 1, ALPHA = 2, EPSILON = 4, PADDING = 8, MOST_INPUTS = 12 };

/* What the shapes of inputs have in common. */
enum Quantity {
    UNIT,   /* 1 */
    TEXTS,  /* of the token ids */
    TOKENS, /* of each of them */
    ROWS,   /* of codes or of numbers */
    INPUTS, /* LANES channels of codes */
    OUTLIERS_READ,
    COLUMNS,  /* blocks of them */
    CHANNELS, /* LANES of them */
    OUTLIERS_WRITTEN,
    WORDS,
    POSITIONS,
    BIASED_HEADS,
    QUANTITIES,
};

/* `times` a quantity and `plus`. */
typedef struct Size {
    unsigned char quantity, plus;
    unsigned short times;
} Size;

typedef struct Input {
    const char *name;
    int type, is_constant;
    Size shape[2]; /* with one axis the second is UNIT, with none both are */
} Input;

typedef struct Definition Definition;

/* What onnxruntime makes of a node: all that does not change from run to run, checked. */
typedef struct Kernel {
    const Definition *definition;
    const Api *api;
    int64_t heads, padding, quantities[QUANTITIES];
    float alpha, epsilon;
    const void *constants[MOST_INPUTS];
} Kernel;

/* Inputs and outputs of one run of a node. The first error is kept, and all that follows does nothing. */
typedef struct Run {
    const Kernel *kernel;
    KernelContext *context;
    Status *error;
    int64_t quantities[QUANTITIES]; /* -1: not known yet */
    const void *inputs[MOST_INPUTS];
} Run;

struct Definition {
    Operator operator;
    const char *name;
    void (*compute)(Run *);
    const Arithmetic *arithmetic;
    unsigned attributes;
    int outputs[3];
    Input inputs[MOST_INPUTS];
};

/* An error that names operator and input: "Linear: bias of shape 64 x 1 does not fit the other inputs". */
static Status *complain(const Api *api, const Definition *definition, const Input *input, const char *problem) {
    char message[200];
    snprintf(message, sizeof message, "%s: %s %s", definition->name, input->name, problem);
    return api->CreateStatus(FAIL, message);
}

/* Whether a size is the right multiple of a quantity, which is learnt from the first input that has it. */
static int fits(const Size *size, int64_t found, int64_t *quantities) {
    int64_t *known = &quantities[size->quantity];
    if (*known >= 0) return found == *known * size->times + size->plus;
    const int may_be_none = size->quantity == TEXTS || size->quantity == TOKENS || size->quantity == ROWS ||
                            size->quantity == OUTLIERS_READ || size->quantity == OUTLIERS_WRITTEN;
    if (found < size->plus || (found - size->plus) % size->times) return 0;
    *known = (found - size->plus) / size->times;
    return *known > 0 || may_be_none;
}

/* The one place where type and shape of an input are compared with what its operator reads. */
static Status *read_input(const Api *api, const Definition *definition, size_t index, const Value *value,
                          int64_t *quantities, const void **data) {
    const Input *input = &definition->inputs[index];
    int64_t sizes[2] = {1, 1};
    Shape *shape = NULL;
    size_t axes = 0;
    int type = 0;
    void *found = NULL;
    if (!value) return complain(api, definition, input, "is missing");
    Status *error = api->GetTensorTypeAndShape(value, &shape);
    if (!error) error = api->GetTensorElementType(shape, &type);
    if (!error && type != input->type) error = complain(api, definition, input, "is of another type");
    if (!error) error = api->GetDimensionsCount(shape, &axes);
    if (!error && axes > 2) error = complain(api, definition, input, "has more than two axes");
    if (!error) error = api->GetDimensions(shape, sizes, axes);
    for (int axis = 0; !error && axis < 2; axis++) {
        if (fits(&input->shape[axis], sizes[axis], quantities)) continue;
        char problem[100];
        snprintf(problem, sizeof problem, "of shape %" PRId64 " x %" PRId64 " does not fit the other inputs", sizes[0],
                 sizes[1]);
        error = complain(api, definition, input, problem);
    }
    if (!error) error = api->GetTensorMutableData((Value *)value, &found);
    if (shape) api->ReleaseTensorTypeAndShapeInfo(shape);
    *data = found;
    return error;
}

static int64_t count_of(const Input *input, const int64_t *quantities) {
    const Size *a = &input->shape[0], *b = &input->shape[1];
    return (quantities[a->quantity] * a->times + a->plus) * (quantities[b->quantity] * b->times + b->plus);
}

/* What is wrong with the values of a constant; NULL if nothing. No loop ends early, so that each takes 16 bytes at once.
   */
static const char *wrong_values(const Kernel *kernel, size_t index) {
    const Input *input = &kernel->definition->inputs[index];
    const int64_t count = count_of(input, kernel->quantities);
    int wrong = 0;
    if (input->type == FLOAT) {
        const float *values = kernel->constants[index];
        for (int64_t i = 0; i < count; i++) wrong |= !(__builtin_fabsf(values[i]) <= LARGEST);
        return wrong ? "holds a number that is not finite, or beyond 1e12" : NULL;
    }
    if (input->type == INT32) { /* sums of weights */
        const int32_t *sums = kernel->constants[index];
        const int32_t limit = (int32_t)(128 * LANES * kernel->quantities[INPUTS]);
        for (int64_t i = 0; i < count; i++) wrong |= sums[i] < -limit || sums[i] > limit;
        return wrong ? "holds a sum that no int8 weights have" : NULL;
    }
    if (input->type == INT64 && index > 0) { /* outlier channels, whose factors come before them */
        const int64_t *channels = kernel->constants[index];
        const int64_t limit = count_of(input - 1, kernel->quantities);
        for (int64_t i = 0; i < count; i++) wrong |= channels[i] < 0 || channels[i] >= limit;
        return wrong ? "names a channel that is not there" : NULL;
    }
    return NULL;
}

static void read_inputs(Run *run) {
    const Kernel *kernel = run->kernel;
    const Definition *definition = kernel->definition;
    for (size_t i = 0; !run->error && i < MOST_INPUTS && definition->inputs[i].name; i++) {
        const Value *value = NULL;
        run->inputs[i] = kernel->constants[i];
        if (definition->inputs[i].is_constant) continue;
        run->error = kernel->api->KernelContext_GetInput(run->context, i, &value);
        if (!run->error) run->error = read_input(kernel->api, definition, i, value, run->quantities, &run->inputs[i]);
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

/* Memory for a run, aligned to lines of the cache and in whole lines. */
static void *workspace_of(Run *run, int64_t bytes) {
    enum { LINE = 64 };
    void *workspace = run->error ? NULL : aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE);
    check(run, workspace != NULL, "out of memory");
    return workspace;
}

/* Made of the inputs (gamma, beta) from `first` on. */
static Normalization normalization_of(const Run *run, size_t first, int64_t size) {
    return (Normalization){
        .size = size,
        .epsilon = run->kernel->epsilon,
        .gamma = run->inputs[first],
        .beta = run->inputs[first + 1],
    };
}

/* Made of the inputs (factor, outlier_channels) from `first` on and the outputs from `output` on. */
static Coding coding_of(Run *run, size_t first, size_t output, int64_t rows, int64_t size) {
    const int64_t outliers = run->quantities[OUTLIERS_WRITTEN];
    Coding coding = {
        .size = size,
        .outlier_count = outliers,
        .factor = run->inputs[first],
        .outlier_channels = run->inputs[first + 1],
    };
    coding.codes = output_of(run, output, (int64_t[]){rows, size}, 2);
    coding.rest = output_of(run, output + 1, (int64_t[]){rows, OUTLIERS + outliers}, 2);
    return coding;
}

enum { PRODUCT_INPUTS = 7 };

/* Made of the inputs (codes, rest, weight, sums, scale, bias, rest_weight). The caller frees its workspace. */
static Product product_of(Run *run) {
    const int64_t size = run->quantities[INPUTS] * LANES;
    return (Product){
        .rows = run->quantities[ROWS],
        .size = size,
        .columns = run->quantities[COLUMNS] * BLOCK,
        .rest_size = OUTLIERS + run->quantities[OUTLIERS_READ],
        .codes = run->inputs[0],
        .rest = run->inputs[1],
        .weight = run->inputs[2],
        .sums = run->inputs[3],
        .scale = run->inputs[4],
        .bias = run->inputs[5],
        .rest_weight = run->inputs[6],
        .workspace = run->kernel->definition->arithmetic->needs_workspace ? workspace_of(run, MC * size) : NULL,
    };
}

static const Arithmetic *arithmetic_of(const Run *run) { return run->kernel->definition->arithmetic; }

/* Whether there is something to compute: no error, and no empty batch, whose data may lie at NULL. */
static int goes_on(const Run *run, int64_t rows) { return !run->error && rows > 0; }

static void compute_embed(Run *run) {
    const int64_t size = run->quantities[CHANNELS] * LANES;
    Embed embedding = {
        .texts = run->quantities[TEXTS],
        .tokens = run->quantities[TOKENS],
        .ids = run->inputs[0],
        .words = run->inputs[1],
        .word_scales = run->inputs[2],
        .channel_scales = run->inputs[3],
        .positions = run->inputs[4],
        .padding = run->kernel->padding,
        .normalization = normalization_of(run, 5, size),
    };
    const int64_t rows = embedding.texts * embedding.tokens, words = run->quantities[WORDS];
    const int64_t positions = run->quantities[POSITIONS] - (embedding.padding != NO_TOKEN);
    check(run, embedding.tokens <= positions, "a text has more tokens than there are positions");
    for (int64_t i = 0; !run->error && i < rows; i++)
        check(run, embedding.ids[i] >= 0 && embedding.ids[i] < words, "a token id is not in the vocabulary");
    embedding.y = output_of(run, 0, (int64_t[]){rows, size}, 2);
    embedding.coding = coding_of(run, 7, 1, rows, size);
    if (goes_on(run, rows)) arithmetic_of(run)->embed(&embedding);
}

static void compute_linear(Run *run) {
    const Product product = product_of(run);
    float *y = output_of(run, 0, (int64_t[]){product.rows, product.columns}, 2);
    if (goes_on(run, product.rows)) arithmetic_of(run)->linear(&product, y);
    free(product.workspace);
}

static void linear_add_normalize(Run *run, int with_codes) {
    const Product product = product_of(run);
    const int64_t rows = product.rows, size = product.columns;
    AddNormalize residual_norm = {
        .residual = run->inputs[PRODUCT_INPUTS],
        .normalization = normalization_of(run, PRODUCT_INPUTS + 1, size),
    };
    Coding coding;
    if (with_codes) {
        residual_norm.y = output_of(run, 0, (int64_t[]){rows, size}, 2);
        coding = coding_of(run, PRODUCT_INPUTS + 3, 1, rows, size);
        residual_norm.coding = &coding;
    } else {
        const int64_t texts = run->quantities[TEXTS], tokens = run->quantities[TOKENS];
        check(run, texts * tokens == rows, "token ids and rows differ in number");
        residual_norm.y = output_of(run, 0, (int64_t[]){texts, tokens, size}, 3);
    }
    if (goes_on(run, rows)) arithmetic_of(run)->linear_add_normalize(&product, &residual_norm);
    free(product.workspace);
}

static void compute_linear_add_normalize(Run *run) { linear_add_normalize(run, 0); }

static void compute_linear_add_normalize_quantize(Run *run) { linear_add_normalize(run, 1); }

static void compute_linear_gelu_quantize(Run *run) {
    const Product product = product_of(run);
    const Coding coding = coding_of(run, PRODUCT_INPUTS, 0, product.rows, product.columns);
    float *workspace = workspace_of(run, MC * (product.columns + LANES) * (int64_t)sizeof(float));
    if (goes_on(run, product.rows)) arithmetic_of(run)->linear_gelu_quantize(&product, &coding, workspace);
    free(workspace);
    free(product.workspace);
}

static void compute_quantize(Run *run) {
    const int64_t rows = run->quantities[ROWS];
    const Coding coding = coding_of(run, 1, 0, rows, run->quantities[CHANNELS] * LANES);
    if (goes_on(run, rows)) arithmetic_of(run)->quantize(&coding, run->inputs[0], rows);
}

static void compute_attention_quantize(Run *run) {
    const int64_t rows = run->quantities[ROWS], heads = run->kernel->heads;
    const int64_t channels = run->quantities[CHANNELS] * LANES;
    Attention attention = {
        .texts = run->quantities[TEXTS],
        .tokens = run->quantities[TOKENS],
        .heads = heads,
        .size = channels / heads,
        .alpha = run->kernel->alpha * 1.44269504f, /* log2 e: exp by powers of 2 */
        .qkv = run->inputs[0],
        .coding = {.size = channels},
    };
    if (run->kernel->definition->inputs[2].name) {
        attention.bias = run->inputs[2];
        attention.positions = run->quantities[POSITIONS];
        check(run, attention.tokens <= attention.positions, "a text has more tokens than there are positions");
        check(run, run->quantities[BIASED_HEADS] == heads, "the heads of bias and of attention differ in number");
    }
    check(run, channels % (heads * LANES) == 0, "the channels of a head are not a multiple of 16");
    check(run, rows == attention.texts * attention.tokens, "token ids and rows differ in number");
    attention.coding.codes = output_of(run, 0, (int64_t[]){rows, channels}, 2);
    attention.coding.rest = output_of(run, 1, (int64_t[]){rows, OUTLIERS}, 2);
    if (!goes_on(run, rows)) return;
    attention.workspace = workspace_of(run, attention_workspace(attention.tokens, heads, attention.size));
    if (!run->error) arithmetic_of(run)->attend(&attention);
    free(attention.workspace);
}

static const Definition *definition_of(const Operator *operator) { return (const Definition *)operator; }

static const char *name_of(const Operator *operator) { return definition_of(operator)->name; }

static const char *provider_of(const Operator *operator) { return NULL; } /* the CPU's */

static int input_type(const Operator *operator, size_t index) { return definition_of(operator)->inputs[index].type; }

static size_t input_count(const Operator *operator) {
    size_t count = 0;
    while (count < MOST_INPUTS && definition_of(operator)->inputs[count].name) count++;
    return count;
}

static int output_type(const Operator *operator, size_t index) { return definition_of(operator)->outputs[index]; }

static size_t output_count(const Operator *operator) {
    size_t count = 0;
    while (count < 3 && definition_of(operator)->outputs[count]) count++;
    return count;
}

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

/* The index in `known` of the best that this CPU has; KNOWN if it has none. Intel's manual, volume 1, 14.3, 14.5.3,
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

/* Sets the index in `known` of this CPU's best, or of those that KERNELS_INSTRUCTIONS names. Returns what is wrong with
   the CPU or the variable; NULL if nothing. */
static const char *choose_instructions(size_t *chosen) {
    const char *wanted = getenv("KERNELS_INSTRUCTIONS");
    const size_t best = best_of_this_cpu();
    *chosen = best;
    if (best == KNOWN) return CPU_IS_TOO_OLD;
    if (!wanted || !*wanted) return NULL;
    for (*chosen = 0; *chosen < KNOWN; ++*chosen) {
        if (strcmp(wanted, known[*chosen].name) != 0) continue;
        return *chosen < best ? "this CPU does not have the instructions that KERNELS_INSTRUCTIONS names: unset it"
                              : NULL;
    }
    return "KERNELS_INSTRUCTIONS must be one of " NAMES ", or unset for the best that the CPU has";
}

static Status *read_attributes(Kernel *kernel, const KernelInfo *info) {
    const Api *api = kernel->api;
    const unsigned attributes = kernel->definition->attributes;
    Status *error = NULL;
    if (attributes & HEADS) error = api->KernelInfoGetAttribute_int64(info, "heads", &kernel->heads);
    if (!error && attributes & HEADS && (kernel->heads < 1 || kernel->heads > MOST_INPUTS_OF_A_PRODUCT))
        error = api->CreateStatus(FAIL, "heads is not a number of heads");
    if (!error && attributes & ALPHA) error = api->KernelInfoGetAttribute_float(info, "alpha", &kernel->alpha);
    if (!error && attributes & ALPHA && !(kernel->alpha >= 0 && kernel->alpha <= LARGEST))
        error = api->CreateStatus(FAIL, "alpha is not a number from 0 to 1e12");
    if (!error && attributes & EPSILON) error = api->KernelInfoGetAttribute_float(info, "epsilon", &kernel->epsilon);
    if (!error && attributes & EPSILON && !(kernel->epsilon >= 0 && kernel->epsilon <= LARGEST))
        error = api->CreateStatus(FAIL, "epsilon is not a number from 0 to 1e12");
    if (!error && attributes & PADDING) error = api->KernelInfoGetAttribute_int64(info, "padding", &kernel->padding);
    if (!error && attributes & PADDING && kernel->padding < 0)
        error = api->CreateStatus(FAIL, "padding is not a token id");
    return error;
}

static Status *read_constants(Kernel *kernel, const KernelInfo *info) {
    const Api *api = kernel->api;
    const Definition *definition = kernel->definition;
    Status *error = NULL;
    for (size_t i = 0; !error && i < MOST_INPUTS && definition->inputs[i].name; i++) {
        const Input *input = &definition->inputs[i];
        const Value *value = NULL;
        int is_constant = 0;
        if (!input->is_constant) continue;
        error = api->KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value);
        if (!error && !is_constant) error = complain(api, definition, input, "is not a constant");
        if (!error) error = read_input(api, definition, i, value, kernel->quantities, &kernel->constants[i]);
        if (!error && kernel->quantities[INPUTS] > MOST_INPUTS_OF_A_PRODUCT / LANES)
            error = complain(api, definition, input, "has too many inputs for sums of 32 bits");
        const char *problem = error ? NULL : wrong_values(kernel, i);
        if (problem) error = complain(api, definition, input, problem);
    }
    return error;
}

static Status *create(const Operator *operator, const Api *api, const KernelInfo *info, void **made) {
    Kernel *kernel = calloc(1, sizeof *kernel);
    if (!kernel) return api->CreateStatus(FAIL, "out of memory");
    kernel->definition = definition_of(operator);
    kernel->api = api;
    kernel->padding = NO_TOKEN;
    for (int i = 0; i < QUANTITIES; i++) kernel->quantities[i] = i == UNIT ? 1 : -1;
    Status *error = read_attributes(kernel, info);
    if (!error) error = read_constants(kernel, info);
    if (error)
        free(kernel);
    else
        *made = kernel;
    return error;
}

static Status *compute(void *of, KernelContext *context) {
    const Kernel *kernel = of;
    Run run = {.kernel = kernel, .context = context};
    memcpy(run.quantities, kernel->quantities, sizeof run.quantities);
    read_inputs(&run);
    if (!run.error) kernel->definition->compute(&run);
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

#define ONE {UNIT, 0, 1}
#define N(quantity, times) {quantity, 0, times}
#define AND(plus, quantity) {quantity, plus, 1}
#define DATA 0
#define CONSTANT 1

#define OF_COLUMNS N(COLUMNS, BLOCK), ONE
#define IDS {"ids", INT64, DATA, {N(TEXTS, 1), N(TOKENS, 1)}}
#define PRODUCT                                                                                                       \
    {"codes", UINT8, DATA, {N(ROWS, 1), N(INPUTS, LANES)}},                                                           \
    {"rest", FLOAT, DATA, {N(ROWS, 1), AND(OUTLIERS, OUTLIERS_READ)}},                                                \
    {"weight", INT8, CONSTANT, {N(COLUMNS, 1), N(INPUTS, LANES * BLOCK)}},                                            \
    {"sums", INT32, CONSTANT, {OF_COLUMNS}},                                                                          \
    {"scale", FLOAT, CONSTANT, {OF_COLUMNS}},                                                                         \
    {"bias", FLOAT, CONSTANT, {OF_COLUMNS}},                                                                          \
    {"rest_weight", FLOAT, CONSTANT, {AND(OUTLIERS - LOWEST, OUTLIERS_READ), N(COLUMNS, BLOCK)}}
#define NORMALIZATION(quantity, times)                                                                                \
    {"gamma", FLOAT, CONSTANT, {N(quantity, times), ONE}}, {"beta", FLOAT, CONSTANT, {N(quantity, times), ONE}}
#define CODING(quantity, times)                                                                                       \
    {"factor", FLOAT, CONSTANT, {N(quantity, times), ONE}},                                                           \
    {"outlier_channels", INT64, CONSTANT, {N(OUTLIERS_WRITTEN, 1), ONE}}

#define TABLES                                                                                                        \
    {"words", INT8, CONSTANT, {N(WORDS, 1), N(CHANNELS, LANES)}},                                                     \
    {"word_scales", FLOAT, CONSTANT, {N(WORDS, 1), ONE}},                                                             \
    {"channel_scales", FLOAT, CONSTANT, {N(CHANNELS, LANES), ONE}},                                                   \
    {"positions", FLOAT, CONSTANT, {N(POSITIONS, 1), N(CHANNELS, LANES)}}

static const Definition definitions[] = {
    {
        OPERATOR, "Embed", compute_embed, NULL, EPSILON, {FLOAT, UINT8, FLOAT},
        {IDS, TABLES, NORMALIZATION(CHANNELS, LANES), CODING(CHANNELS, LANES)},
    },
    {
        OPERATOR, "EmbedAfterPadding", compute_embed, NULL, EPSILON | PADDING, {FLOAT, UINT8, FLOAT},
        {IDS, TABLES, NORMALIZATION(CHANNELS, LANES), CODING(CHANNELS, LANES)},
    },
    {
        OPERATOR, "AttentionQuantize", compute_attention_quantize, NULL, HEADS | ALPHA, {UINT8, FLOAT},
        {{"qkv", FLOAT, DATA, {N(ROWS, 1), N(CHANNELS, 3 * LANES)}}, IDS},
    },
    {
        OPERATOR, "AttentionBiasQuantize", compute_attention_quantize, NULL, HEADS | ALPHA, {UINT8, FLOAT},
        {
            {"qkv", FLOAT, DATA, {N(ROWS, 1), N(CHANNELS, 3 * LANES)}},
            IDS,
            {"bias", FLOAT, CONSTANT, {N(BIASED_HEADS, 1), {POSITIONS, MORE_BIASES, 2}}},
        },
    },
    {
        OPERATOR, "Linear", compute_linear, NULL, 0, {FLOAT},
        {PRODUCT},
    },
    {
        OPERATOR, "LinearAddNormalize", compute_linear_add_normalize, NULL, EPSILON, {FLOAT},
        {PRODUCT, {"residual", FLOAT, DATA, {N(ROWS, 1), N(COLUMNS, BLOCK)}}, NORMALIZATION(COLUMNS, BLOCK), IDS},
    },
    {
        OPERATOR, "LinearAddNormalizeQuantize", compute_linear_add_normalize_quantize, NULL, EPSILON,
        {FLOAT, UINT8, FLOAT},
        {
            PRODUCT,
            {"residual", FLOAT, DATA, {N(ROWS, 1), N(COLUMNS, BLOCK)}},
            NORMALIZATION(COLUMNS, BLOCK),
            CODING(COLUMNS, BLOCK),
        },
    },
    {
        OPERATOR, "LinearGeluQuantize", compute_linear_gelu_quantize, NULL, 0, {UINT8, FLOAT},
        {PRODUCT, CODING(COLUMNS, BLOCK)},
    },
    {
        OPERATOR, "Quantize", compute_quantize, NULL, 0, {UINT8, FLOAT},
        {{"x", FLOAT, DATA, {N(ROWS, 1), N(CHANNELS, LANES)}}, CODING(CHANNELS, LANES)},
    },
};
/* clang-format on */
enum { DEFINITIONS = sizeof definitions / sizeof *definitions };

/* The operators for one instruction set. All sessions share them. They are never released, since sessions may outlive
   one another. */
typedef struct Library {
    Domain *domain;
    Definition definitions[DEFINITIONS];
} Library;

/* By index in `known`. If threads make one at the same time, the first to finish is kept. */
static Library *libraries[KNOWN];

static Status *library_of(const Api *api, size_t instructions, Library **library) {
    *library = __atomic_load_n(&libraries[instructions], __ATOMIC_ACQUIRE);
    if (*library) return NULL;
    Library *made = malloc(sizeof *made), *first = NULL;
    if (!made) return api->CreateStatus(FAIL, "out of memory");
    memcpy(made->definitions, definitions, sizeof definitions);
    made->domain = NULL;
    Status *error = api->CreateCustomOpDomain("lambda.embeddings", &made->domain);
    for (size_t i = 0; !error && i < DEFINITIONS; i++) {
        made->definitions[i].arithmetic = known[instructions].arithmetic;
        error = api->CustomOpDomain_Add(made->domain, &made->definitions[i].operator);
    }
    if (!error &&
        __atomic_compare_exchange_n(&libraries[instructions], &first, made, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        *library = made;
        return NULL;
    }
    if (made->domain) api->ReleaseCustomOpDomain(made->domain);
    free(made);
    *library = first;
    return error;
}

/* What onnxruntime calls in a library of operators. The options tell which instructions are in use. */
EXPORT Status *RegisterCustomOps(SessionOptions *options, const ApiBase *base) {
    const Api *api = base->GetApi(16);
    size_t instructions;
    const char *wrong = choose_instructions(&instructions);
    if (wrong) return api->CreateStatus(FAIL, wrong);
    Library *library;
    Status *error = library_of(api, instructions, &library);
    if (!error) error = api->AddSessionConfigEntry(options, "kernels.instructions", known[instructions].name);
    return error ? error : api->AddCustomOpDomain(options, library->domain);
}
