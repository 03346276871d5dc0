/* Engines and sessions for C, and for every language that calls C: link libsegmenter_trt_c.
 *
 *   segmenter_trt_engine* engine = NULL;
 *   segmenter_trt_session* session = NULL;
 *   if (segmenter_trt_engine_open("model.onnx", NULL, &engine) != SEGMENTER_TRT_OK ||
 *       segmenter_trt_session_open(engine, NULL, &session) != SEGMENTER_TRT_OK ||
 *       segmenter_trt_session_run(session, pixels, 1, height, width, labels, label_bytes) != SEGMENTER_TRT_OK)
 *     fprintf(stderr, "error: %s\n", segmenter_trt_last_error());
 *   segmenter_trt_session_close(session);
 *   segmenter_trt_engine_close(engine);
 *
 * Whatever can fail returns a status, and segmenter_trt_last_error says why in one line. Nothing is thrown, and nothing
 * given back is freed by the caller but by the two functions that close. */
#ifndef SEGMENTER_TRT_C_API_H
#define SEGMENTER_TRT_C_API_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SEGMENTER_TRT_API __attribute__((visibility("default")))
#else
#define SEGMENTER_TRT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a program compiled with this header could not use a library of another number. */
#define SEGMENTER_TRT_C_ABI 1

/* int32_t, not an enum: a later library may have more of them. */
typedef int32_t segmenter_trt_status;
#define SEGMENTER_TRT_OK 0
#define SEGMENTER_TRT_MANIFEST_ERROR 1 /* the JSON beside the artifact is missing or is no manifest */
#define SEGMENTER_TRT_ARTIFACT_ERROR \
  2                                 /* the artifact is missing, not the one its manifest is of, or cannot be opened */
#define SEGMENTER_TRT_UNAVAILABLE 3 /* this machine lacks the library, the driver or the device */
#define SEGMENTER_TRT_INPUT_ERROR 4 /* arguments that this function or this engine does not take */
/* The network failed, or its session is in another call; of segmenter_trt_session_run, _run_resized and _sliding_window
 * also that scores are no numbers, which the first two do not see where the graph gives labels and no masks. */
#define SEGMENTER_TRT_RUN_ERROR 5
#define SEGMENTER_TRT_NO_MEMORY 6
#define SEGMENTER_TRT_INTERNAL_ERROR 7 /* a fault of the library's own */

/* An artifact opened in its runtime: immutable, for any number of threads. */
typedef struct segmenter_trt_engine segmenter_trt_engine;
/* One per thread. It keeps what it needs of its engine, which may be closed before it. */
typedef struct segmenter_trt_session segmenter_trt_session;

/* Set `size` to sizeof(the structure) and the rest to zero: zero is the default of every field. */
typedef struct segmenter_trt_engine_options {
  size_t size;
  const char* backend;      /* openvino, tensorrt or tensorrt-rtx; NULL takes the one the artifact is for */
  const char* precision;    /* of OpenVINO's floating-point layers: fp32 or bf16; NULL chooses */
  const char* runtime;      /* library of the runtime, or its folder; NULL searches */
  const char* plugins;      /* library of the plugins a plan asks for; NULL searches */
  int32_t threads;          /* of the CPU; 0 takes every core this process may use */
  int32_t streams;          /* sessions the CPU serves at the same moment, which share the threads; 0 is 1 */
  int32_t device;           /* GPU */
  int32_t require_verified; /* 1 refuses what `warning` of its facts would tell is not verified */
} segmenter_trt_engine_options;

typedef struct segmenter_trt_session_options {
  size_t size;
  int32_t threads;          /* of the CPU, around the network; 0 takes the engine's */
  int32_t no_graphs;        /* GPU: 1 launches every kernel, 0 replays each shape as a CUDA graph */
  int32_t shared_workspace; /* GPU: 1 shares one workspace with all sessions that ask for it, which take turns */
} segmenter_trt_session_options;

/* [min, opt, max] of what an engine takes; three times the same for a fixed one. */
typedef struct segmenter_trt_facts {
  size_t size; /* set before the call, as in options */
  int64_t height[3], width[3], batch[3];
  int64_t classes;
  int64_t patch_size;
  int64_t label_bytes; /* of one label: 1, or 2 (int16_t) of more than 256 classes */
  /* strings are the engine's, until it is closed */
  const char* engine;    /* openvino, tensorrt or tensorrt-rtx */
  const char* runtime;   /* with its version */
  const char* device;    /* cpu, or the GPU's name */
  const char* precision; /* of the artifact */
  const char* model;
  const char* warning; /* that the artifact is not verified in this engine, or failed, or what may make labels here
                        * differ from those it was verified with; "" when there is nothing to tell */
} segmenter_trt_facts;

/* Of the library, as in "1.2.3". */
SEGMENTER_TRT_API const char* segmenter_trt_version(void);
/* SEGMENTER_TRT_C_ABI of the library. */
SEGMENTER_TRT_API int32_t segmenter_trt_c_abi(void);

/* Why the last call of this thread that failed did so; "" before the first. Until the thread's next failure. */
SEGMENTER_TRT_API const char* segmenter_trt_last_error(void);

/* options: NULL for the defaults. *engine is NULL after a failure. */
SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_engine_open(const char* artifact,
                                                                 const segmenter_trt_engine_options* options,
                                                                 segmenter_trt_engine** engine);
SEGMENTER_TRT_API void segmenter_trt_engine_close(segmenter_trt_engine* engine);
SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_engine_facts(const segmenter_trt_engine* engine,
                                                                  segmenter_trt_facts* facts);
/* Name and colour (R, G, B) of a class; name is the engine's. Either may be NULL. */
SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_engine_class(const segmenter_trt_engine* engine, int64_t index,
                                                                  const char** name, uint8_t colour[3]);

SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_session_open(const segmenter_trt_engine* engine,
                                                                  const segmenter_trt_session_options* options,
                                                                  segmenter_trt_session** session);
SEGMENTER_TRT_API void segmenter_trt_session_close(segmenter_trt_session* session);

/* Labels of `batch` images: pixels [batch, height, width, 3], R, G, B, contiguous; labels [batch, height, width], of
 * facts.label_bytes each. `bytes` is the size of the memory at `labels`, which must be exactly theirs. */
SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_session_run(segmenter_trt_session* session, const uint8_t* pixels,
                                                                 int64_t batch, int64_t height, int64_t width,
                                                                 void* labels, size_t bytes);

/* The same of pictures of any size [batch, height, width, 3], resized first to one that the engine takes: labels
 * [batch, to_height, to_width]. */
SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_session_run_resized(segmenter_trt_session* session,
                                                                         const uint8_t* pixels, int64_t batch,
                                                                         int64_t height, int64_t width, void* labels,
                                                                         int64_t to_height, int64_t to_width,
                                                                         size_t bytes);

/* Labels of one image of any size, through windows of the side `window`, every `stride` pixels (0: the window's side),
 * `window_batch` of them in one call of the network (0: one). */
SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_session_sliding_window(segmenter_trt_session* session,
                                                                            const uint8_t* pixels, int64_t height,
                                                                            int64_t width, int64_t window,
                                                                            int64_t stride, int64_t window_batch,
                                                                            void* labels, size_t bytes);

/* Class masks on the patch grid, [batch, K, h, w] as written to `shape`, in memory of the session's until its next
 * call. Scores that are no numbers are given as they are, with SEGMENTER_TRT_OK, here and by
 * segmenter_trt_session_logits. */
SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_session_masks(segmenter_trt_session* session,
                                                                   const uint8_t* pixels, int64_t batch, int64_t height,
                                                                   int64_t width, const float** masks,
                                                                   int64_t shape[4]);

/* Scores of every pixel, [batch, K, height, width]; `bytes` is the size of the memory at `logits`. */
SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_session_logits(segmenter_trt_session* session,
                                                                    const uint8_t* pixels, int64_t batch,
                                                                    int64_t height, int64_t width, float* logits,
                                                                    size_t bytes);

/* As segmenter_trt_session_run on a GPU: both addresses are the device's, at multiples of 256 bytes, and the work is
 * enqueued on a CUstream (NULL: the default one; none that is being captured) and not waited for. Scores that are no
 * numbers go unseen. */
SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_session_enqueue(segmenter_trt_session* session,
                                                                     const void* device_pixels, int64_t batch,
                                                                     int64_t height, int64_t width, void* device_labels,
                                                                     size_t bytes, void* stream);

/* Images to another size, bilinearly: pixels [batch, height, width, 3] to resized [batch, to_height, to_width, 3].
 * threads: 0 chooses. */
SEGMENTER_TRT_API segmenter_trt_status segmenter_trt_resize(const uint8_t* pixels, int64_t batch, int64_t height,
                                                            int64_t width, uint8_t* resized, int64_t to_height,
                                                            int64_t to_width, int32_t threads);

#ifdef __cplusplus
}
#endif

#endif
