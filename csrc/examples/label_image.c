/* Labels one picture through the C API: label_image_c ENGINE PICTURE.ppm
 *
 * Prints how many pixels each class has, after the picture was resized to the size the engine takes. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "segmenter_trt/c_api.h"

/* The picture, [height, width, 3], or NULL. */
static uint8_t* read_ppm(const char* path, int64_t* height, int64_t* width) {
  FILE* const file = fopen(path, "rb");
  uint8_t* pixels = NULL;
  int most = 0; /* the largest value of a channel, which says how many bytes it has */
  if (file == NULL) return NULL;
  if (fscanf(file, "P6 %" SCNd64 " %" SCNd64 " %d", width, height, &most) == 3 && most == 255 && fgetc(file) != EOF &&
      *width > 0 && *height > 0 && *width <= 16384 && *height <= 16384) {
    const size_t bytes = (size_t)(*height * *width * 3);
    pixels = malloc(bytes);
    if (pixels != NULL && fread(pixels, 1, bytes, file) != bytes) {
      free(pixels);
      pixels = NULL;
    }
  }
  fclose(file);
  return pixels;
}

int main(int count, char** arguments) {
  segmenter_trt_engine* engine = NULL;
  segmenter_trt_session* session = NULL;
  segmenter_trt_facts facts = {0};
  facts.size = sizeof(facts);
  if (count != 3) return fprintf(stderr, "error: usage: label_image_c ENGINE PICTURE.ppm\n"), 2;
  if (segmenter_trt_engine_open(arguments[1], NULL, &engine) != SEGMENTER_TRT_OK ||
      segmenter_trt_engine_facts(engine, &facts) != SEGMENTER_TRT_OK ||
      segmenter_trt_session_open(engine, NULL, &session) != SEGMENTER_TRT_OK) {
    fprintf(stderr, "error: %s\n", segmenter_trt_last_error());
    return 2;
  }

  int64_t height = 0, width = 0;
  const int64_t H = facts.height[1], W = facts.width[1];
  const size_t bytes = (size_t)(H * W * facts.label_bytes);
  uint8_t* const picture = read_ppm(arguments[2], &height, &width);
  uint8_t* const pixels = malloc((size_t)(H * W * 3));
  void* const labels = malloc(bytes);
  int status = 2;
  if (picture == NULL || pixels == NULL || labels == NULL) {
    fprintf(stderr, "error: %s: wanted a binary PPM of 8 bits, at most 16384x16384 pixels\n", arguments[2]);
  } else if (segmenter_trt_resize(picture, 1, height, width, pixels, H, W, 0) != SEGMENTER_TRT_OK ||
             segmenter_trt_session_run(session, pixels, 1, H, W, labels, bytes) != SEGMENTER_TRT_OK) {
    fprintf(stderr, "error: %s\n", segmenter_trt_last_error());
  } else {
    status = 0;
    for (int64_t k = 0; k < facts.classes; ++k) {
      const char* name = NULL;
      int64_t found = 0;
      segmenter_trt_engine_class(engine, k, &name, NULL);
      for (int64_t i = 0; i < H * W; ++i) {
        found += (facts.label_bytes == 1 ? ((uint8_t*)labels)[i] : ((int16_t*)labels)[i]) == k;
      }
      printf("%" PRId64 " %s\n", found, name);
    }
  }
  free(labels);
  free(pixels);
  free(picture);
  segmenter_trt_session_close(session);
  segmenter_trt_engine_close(engine);
  return status;
}
