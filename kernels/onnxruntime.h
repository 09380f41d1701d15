/* What operators of our own need of onnxruntime's C API, version 16.

   onnxruntime_c_api.h is a table of functions that only ever grows at its end, so the positions below hold for every
   release; onnxruntime asserts some of them itself (onnxruntime_c_api.cc, "Size of version 1 API cannot change"). */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct Status Status; /* NULL: all is well */
typedef struct Value Value;
typedef struct Shape Shape;
typedef struct KernelInfo KernelInfo;
typedef struct KernelContext KernelContext;
typedef struct SessionOptions SessionOptions;
typedef struct Domain Domain;

enum { FAIL = 1 };                                             /* OrtErrorCode */
enum { FLOAT = 1, UINT8 = 2, INT8 = 3, INT32 = 6, INT64 = 7 }; /* ONNXTensorElementDataType */

struct Operator;

typedef struct Api {
    Status *(*CreateStatus)(int code, const char *message);
    const void *before_domains[26 - 1];
    Status *(*CreateCustomOpDomain)(const char *name, Domain **);
    Status *(*CustomOpDomain_Add)(Domain *, const struct Operator *);
    Status *(*AddCustomOpDomain)(SessionOptions *, Domain *);
    const void *before_data[51 - 29];
    Status *(*GetTensorMutableData)(Value *, void **);
    const void *before_types[60 - 52];
    Status *(*GetTensorElementType)(const Shape *, int *);
    Status *(*GetDimensionsCount)(const Shape *, size_t *);
    Status *(*GetDimensions)(const Shape *, int64_t *, size_t);
    const void *before_shape[65 - 63];
    Status *(*GetTensorTypeAndShape)(const Value *, Shape **);
    const void *before_attributes[85 - 66];
    Status *(*KernelInfoGetAttribute_float)(const KernelInfo *, const char *name, float *);
    Status *(*KernelInfoGetAttribute_int64)(const KernelInfo *, const char *name, int64_t *);
    const void *before_inputs[90 - 87];
    Status *(*KernelContext_GetInput)(const KernelContext *, size_t, const Value **);
    Status *(*KernelContext_GetOutput)(KernelContext *, size_t, const int64_t *shape, size_t, Value **);
    const void *before_release[99 - 92];
    void (*ReleaseTensorTypeAndShapeInfo)(Shape *);
    void (*ReleaseSessionOptions)(SessionOptions *);
    void (*ReleaseCustomOpDomain)(Domain *);
    const void *before_settings[130 - 102];
    Status *(*AddSessionConfigEntry)(SessionOptions *, const char *key, const char *value);
    const void *before_constants[249 - 131];
    Status *(*KernelInfoGetConstantInput_tensor)(const KernelInfo *, size_t, int *is_constant, const Value **);
} Api;

_Static_assert(offsetof(Api, CreateCustomOpDomain) == 26 * sizeof(void *), "place in the table");
_Static_assert(offsetof(Api, GetTensorMutableData) == 51 * sizeof(void *), "place in the table");
_Static_assert(offsetof(Api, GetTensorElementType) == 60 * sizeof(void *), "place in the table");
_Static_assert(offsetof(Api, GetDimensionsCount) == 61 * sizeof(void *), "place in the table");
_Static_assert(offsetof(Api, GetTensorTypeAndShape) == 65 * sizeof(void *), "place in the table");
_Static_assert(offsetof(Api, KernelInfoGetAttribute_float) == 85 * sizeof(void *), "place in the table");
_Static_assert(offsetof(Api, KernelContext_GetInput) == 90 * sizeof(void *), "place in the table");
_Static_assert(offsetof(Api, ReleaseTensorTypeAndShapeInfo) == 99 * sizeof(void *), "place in the table");
_Static_assert(offsetof(Api, ReleaseCustomOpDomain) == 101 * sizeof(void *), "place in the table");
_Static_assert(offsetof(Api, AddSessionConfigEntry) == 130 * sizeof(void *), "place in the table");
_Static_assert(offsetof(Api, KernelInfoGetConstantInput_tensor) == 249 * sizeof(void *), "place in the table");

typedef struct ApiBase {
    const Api *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} ApiBase;

/* OrtCustomOp of version 16. */
typedef struct Operator {
    uint32_t version;
    void *(*CreateKernel)(const struct Operator *, const Api *, const KernelInfo *);
    const char *(*GetName)(const struct Operator *);
    const char *(*GetExecutionProviderType)(const struct Operator *);
    int (*GetInputType)(const struct Operator *, size_t);
    size_t (*GetInputTypeCount)(const struct Operator *);
    int (*GetOutputType)(const struct Operator *, size_t);
    size_t (*GetOutputTypeCount)(const struct Operator *);
    void (*KernelCompute)(void *, KernelContext *);
    void (*KernelDestroy)(void *);
    int (*GetInputCharacteristic)(const struct Operator *, size_t);
    int (*GetOutputCharacteristic)(const struct Operator *, size_t);
    int (*GetInputMemoryType)(const struct Operator *, size_t);
    const void *variadic[4];
    Status *(*CreateKernelV2)(const struct Operator *, const Api *, const KernelInfo *, void **);
    Status *(*KernelComputeV2)(void *, KernelContext *);
} Operator;
