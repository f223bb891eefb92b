# What every consumer project builds: both languages with both libraries.

enable_testing()
foreach(language IN ITEMS c cpp)
  foreach(library IN ITEMS inflight static)
    add_executable(${language}_${library} "${CMAKE_CURRENT_LIST_DIR}/consumer.${language}")
    target_link_libraries(${language}_${library} PRIVATE inflight::${library})
    target_compile_features(${language}_${library} PRIVATE cxx_std_17)
    add_test(NAME ${language}_${library} COMMAND ${language}_${library})
  endforeach()
endforeach()
