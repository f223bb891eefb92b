# Makes a C program of the header, which prints what LayoutTests.cs compares with the binding: the sizes of structs,
# offsets and sizes of fields, and values of enums are thus the C compiler's, and nothing in the header is left out.

BEGIN {
  print "#include <inflight.h>"
  print "#include <stdio.h>"
  print "#define FIELD(type, field) printf(\"field \" #type \" \" #field \" %zu %zu\\n\", offsetof(type, field), \\"
  print "                                  sizeof(((type *)0)->field));"
  print "int main(void)"
  print "{"
  print "    printf(\"version %d\\n\", IFL_VERSION);"
}
/^typedef struct \{/ { kind = "struct"; num = 0; next }
/^typedef enum \{/ { kind = "enum"; num = 0; next }
/^\} ifl_[a-z_]+;/ {
  name = $2
  sub(/;/, "", name)
  if (kind == "struct") printf "    printf(\"struct %s %%zu\\n\", sizeof(%s));\n", name, name
  for (i = 0; i < num; i++) {
    if (kind == "struct") printf "    FIELD(%s, %s)\n", name, names[i]
    else printf "    printf(\"value %s %s %%lld\\n\", (long long)%s);\n", name, names[i], names[i]
  }
  kind = ""
  next
}
kind == "struct" && /^    [a-z].*;$/ {
  match($0, /[a-z_0-9]+;$/)
  names[num++] = substr($0, RSTART, RLENGTH - 1)
}
kind == "enum" && /^    IFL_[A-Z0-9_]+ = / { names[num++] = $1 }
kind == "" && /^[a-z].*ifl_[a-z_]+\(/ {
  match($0, /ifl_[a-z_]+\(/)
  printf "    puts(\"function %s\");\n", substr($0, RSTART, RLENGTH - 1)
}
END {
  print "    return 0;"
  print "}"
}
