#include "fake_images.h"

#include "fake_driver.h"
#include "kernels.h"

namespace fake {

void add_all_images() {
  for (const segmenter_launch::Image& image : segmenter_launch::kKernels.images) {
    std::vector<Code> codes;
    for (const segmenter_launch::Form& form : image.forms) {
      std::vector<std::size_t> bytes;
      for (const auto& parameter : form.parameters) bytes.push_back(parameter.bytes);
      codes.push_back({form.symbol, form.architecture, form.exact, form.ptx, std::move(bytes)});
    }
    add_image(image.code, std::move(codes));
  }
}

}  // namespace fake
