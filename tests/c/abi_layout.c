/* As C99: the numbers of the ABI hold, and header and library are of one version. */

#include "abi_layout.h"

#include <stdio.h>

int main(void)
{
    if (ifl_version() != IFL_VERSION) {
        fprintf(stderr, "header %d, library %u\n", IFL_VERSION, (unsigned)ifl_version());
        return 1;
    }
    return 0;
}
