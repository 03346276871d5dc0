// The fatbins in this program, told to the fake driver as the manifest describes them.
#pragma once

namespace fake {

void add_all_images();

}  // namespace fake
