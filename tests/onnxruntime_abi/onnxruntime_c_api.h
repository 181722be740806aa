/* Stands in for onnxruntime's own header where only its library is there (the Python wheel has no headers): the places in
 * the table of functions that edgekd.hpp calls. The table only ever grows at its end, so they hold for every later
 * library. Written for the tests; programs take the header of a release of onnxruntime. */
#ifndef ONNXRUNTIME_C_API_OF_THE_TESTS_H
#define ONNXRUNTIME_C_API_OF_THE_TESTS_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 14

#ifdef __cplusplus
extern "C" {
#endif

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtValue OrtValue;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;

typedef enum { ORT_LOGGING_LEVEL_FATAL = 4 } OrtLoggingLevel;
typedef enum { OrtArenaAllocator = 1 } OrtAllocatorType;
typedef enum { OrtMemTypeDefault = 0 } OrtMemType;
typedef enum {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7
} ONNXTensorElementDataType;

typedef struct OrtApi {
    void *unused_0[2];
    const char *(*GetErrorMessage)(const OrtStatus *status); /* 2 */
    OrtStatus *(*CreateEnv)(OrtLoggingLevel level, const char *name, OrtEnv **out);
    void *unused_4[2];
    OrtStatus *(*DisableTelemetryEvents)(const OrtEnv *env); /* 6 */
    void *unused_7[1];
    OrtStatus *(*CreateSessionFromArray)(const OrtEnv *env, const void *data, size_t size, /* 8 */
                                         const OrtSessionOptions *options, OrtSession **out);
    OrtStatus *(*Run)(OrtSession *session, const OrtRunOptions *options, const char *const *input_names,
                      const OrtValue *const *inputs, size_t num_inputs, const char *const *output_names,
                      size_t num_outputs, OrtValue **outputs);
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **out);
    void *unused_11[13];
    OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *options, int threads); /* 24 */
    OrtStatus *(*SetInterOpNumThreads)(OrtSessionOptions *options, int threads);
    void *unused_26[23];
    OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *info, void *data, size_t size, /* 49 */
                                                 const int64_t *shape, size_t num_axes,
                                                 ONNXTensorElementDataType type, OrtValue **out);
    void *unused_50[1];
    OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **out); /* 51 */
    void *unused_52[8];
    OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *info, ONNXTensorElementDataType *out); /* 60 */
    OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *info, size_t *out);
    OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *info, int64_t *sides, size_t num_axes);
    void *unused_63[2];
    OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorTypeAndShapeInfo **out); /* 65 */
    void *unused_66[3];
    OrtStatus *(*CreateCpuMemoryInfo)(OrtAllocatorType type, OrtMemType memory, OrtMemoryInfo **out); /* 69 */
    void *unused_70[22];
    void (*ReleaseEnv)(OrtEnv *env); /* 92 */
    void (*ReleaseStatus)(OrtStatus *status);
    void (*ReleaseMemoryInfo)(OrtMemoryInfo *info);
    void (*ReleaseSession)(OrtSession *session);
    void (*ReleaseValue)(OrtValue *value);
    void *unused_97[2];
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *info); /* 99 */
    void (*ReleaseSessionOptions)(OrtSessionOptions *options);
} OrtApi;

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase *OrtGetApiBase(void);

#ifdef __cplusplus
}
#endif

#endif
