#include "manifest_json.h"

#include <algorithm>
#include <cstddef>
#include <unordered_set>
#include <vector>

namespace segmenter_trt {
namespace {

using nlohmann::json;

constexpr std::size_t kDeepest = 32;
constexpr std::size_t kLongestShown = 80;

// What nlohmann::json lets pass.
class Watch {
 public:
  bool operator()(int, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        // before the next is read: depth costs nothing
        if (names_.size() == kDeepest) throw Refused{"nested deeper than " + std::to_string(kDeepest)};
        names_.emplace_back();
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end:
        names_.pop_back();
        break;
      case json::parse_event_t::key:
        if (!names_.back().insert(parsed.get<std::string>()).second) {
          throw Refused{"field " + shown(parsed) + " is there twice"};
        }
        break;
      case json::parse_event_t::value:
        break;
    }
    return true;
  }

 private:
  std::vector<std::unordered_set<std::string>> names_;  // so far, of every list and object that is open
};

}  // namespace

json read_json(std::string_view text) {
  if (text.size() > kMostManifestBytes) {
    throw Refused{"longer than " + std::to_string(kMostManifestBytes) + " bytes"};
  }
  // the parser skips a mark, and ends at a zero byte
  if (text.starts_with("\xEF\xBB\xBF")) throw Refused{"no JSON in UTF-8 (it begins with a byte order mark)"};
  if (text.find('\0') != std::string_view::npos) throw Refused{"no JSON in UTF-8 (it holds a zero byte)"};
  std::string why;
  try {
    Watch watch;
    return json::parse(text,
                       [&](int depth, json::parse_event_t event, json& parsed) { return watch(depth, event, parsed); });
  } catch (const json::exception& error) {
    why = std::string(error.what()).substr(0, 200);
    // what it quotes of the text may hold anything
    const auto strange = [](char c) { return c < ' ' || c > '~'; };
    std::replace_if(why.begin(), why.end(), strange, '?');
  }
  throw Refused{"no JSON in UTF-8 (" + why + ")"};
}

std::string shown(const json& value) {
  const std::string text = value.dump(-1, ' ', true);
  return text.size() <= kLongestShown ? text : text.substr(0, kLongestShown - 3) + "...";
}

}  // namespace segmenter_trt
