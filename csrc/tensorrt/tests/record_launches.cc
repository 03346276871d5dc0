// Prints what the kernels around the network are launched with, as JSON, for each line of standard input:
//   merge_windows 90 K h w side_y side_x H W window stride rows columns
//   resize 90 outer length to inner taps
//   normalize 90 B pixels
// Pointers are left out.
#include <iostream>
#include <sstream>
#include <string>

#include "launcher.h"

using namespace segmenter_launch;

namespace {

void print(const Call& call, int architecture) {
  const Image& image = std::visit([](const auto& each) -> const Image& { return each.choose(kKernels.images); }, call);
  for (const Form& form : image.forms) {
    if (form.architecture != architecture) continue;
    const Launch launch = std::visit([&](const auto& each) { return each.launch(form); }, call);
    std::cout << "{\"name\": \"" << image.name << "\", \"grid\": [" << launch.grid[0] << ", " << launch.grid[1]
              << "], \"threads\": " << form.threads << ", \"arguments\": {";
    const char* between = "";
    for (const Parameter& parameter : form.parameters) {
      if (parameter.kind == Kind::scratch) continue;
      const Value* const value = launch.find(parameter.name);
      std::cout << between << "\"" << parameter.name << "\": ";
      between = ", ";
      if (value == nullptr) {
        std::cout << "\"missing\"";
      } else if (parameter.kind == Kind::i32) {
        std::cout << value->integer;
      } else {
        std::cout << "null";
      }
    }
    std::cout << "}}\n";
  }
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string op;
    int architecture = 0;
    words >> op >> architecture;
    if (op == "resize") {
      ResizeCall call{};
      words >> call.outer >> call.length >> call.to >> call.inner >> call.taps;
      print(call, architecture);
    } else if (op == "normalize") {
      NormalizeCall call{};
      words >> call.B >> call.pixels;
      print(call, architecture);
    } else {
      MergeWindowsCall call{};
      words >> call.K >> call.h >> call.w >> call.side_y >> call.side_x >> call.H >> call.W >> call.window >>
          call.stride >> call.rows >> call.columns;
      print(call, architecture);
    }
  }
  return 0;
}
