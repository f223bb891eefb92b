/* The recorded table of an older version against the header of this one: structs may only have grown at the end. */

#include <inflight.h>

#define SIZE(type, bytes) _Static_assert(sizeof(type) >= (bytes), #type " has shrunk");
#define FIELD(type, field, offset, bytes)                                                        \
    _Static_assert(offsetof(type, field) == (offset) && sizeof(((type *)0)->field) == (bytes), \
                   #type "." #field " has moved or changed");
#define VALUE(name, number) \
    _Static_assert((unsigned long long)(name) == (number), #name " has another value");
/* A declaration that contradicts the header's does not compile. */
#define FUNCTION(declaration) declaration;

#include "table.h"

int main(void)
{
    return 0;
}
