// The second file that includes the header; see abi_layout.cpp.

#include <inflight.h>

const ifl_request &second_request();

const ifl_request &second_request()
{
    static const ifl_request request = IFL_REQUEST_INIT;
    return request;
}
