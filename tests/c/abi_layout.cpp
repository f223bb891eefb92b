// As C++17: the numbers of the ABI hold, and two files that include the header link together.

#include "abi_layout.h"

#include <type_traits>

static_assert(std::is_standard_layout<ifl_event>::value && std::is_trivial<ifl_request>::value,
              "structs are C's");

const ifl_request &second_request();

int main()
{
    const ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    const ifl_status status = ifl_engine_close(nullptr, nullptr);
    const bool is_right = options.struct_size == sizeof options && second_request().seed == IFL_RANDOM_SEED &&
                          status == IFL_INVALID_HANDLE && ifl_version() == IFL_VERSION;
    return is_right ? 0 : 1;
}
