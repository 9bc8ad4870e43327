# What `cmake --install` puts where: headers, lagkv::kernels and lagkv::c where they were built, and the files by which CMake and
# pkg-config find them.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/lagkv)
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS lagkv EXPORT lagkv)
install(EXPORT lagkv FILE lagkvTargets.cmake NAMESPACE lagkv:: DESTINATION ${package_dir})
if(LAGKV_KERNELS)
  # Not a fault where nothing was built: lagkvConfig.cmake then makes the target of the installed sources.
  install(TARGETS lagkv_kernels EXPORT lagkv_kernels ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} OPTIONAL)
  install(EXPORT lagkv_kernels FILE lagkvKernels.cmake NAMESPACE lagkv:: DESTINATION ${package_dir})
endif()
if(TARGET lagkv_c)
  install(TARGETS lagkv_c EXPORT lagkv_c
          LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
          RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(EXPORT lagkv_c FILE lagkvC.cmake NAMESPACE lagkv:: DESTINATION ${package_dir})
endif()

set(kernels_archive ${CMAKE_INSTALL_LIBDIR}/${CMAKE_STATIC_LIBRARY_PREFIX}lagkv_kernels${CMAKE_STATIC_LIBRARY_SUFFIX})
configure_package_config_file(cmake/lagkvConfig.cmake.in ${PROJECT_BINARY_DIR}/lagkvConfig.cmake
                              INSTALL_DESTINATION ${package_dir} PATH_VARS CMAKE_INSTALL_INCLUDEDIR kernels_archive)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/lagkvConfigVersion.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/lagkvConfig.cmake ${PROJECT_BINARY_DIR}/lagkvConfigVersion.cmake DESTINATION ${package_dir})

# pkg-config, from where the files lie: `cmake --install --prefix` may name another prefix than the configure step did.
set(pc_prefix ${CMAKE_INSTALL_PREFIX})
if(NOT IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  file(RELATIVE_PATH up "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
  string(REGEX REPLACE "/$" "" up "${up}")
  set(pc_prefix "\${pcfiledir}/${up}")
endif()
foreach(part LIBDIR INCLUDEDIR)
  set(pc_${part} "\${prefix}/${CMAKE_INSTALL_${part}}")
  if(IS_ABSOLUTE "${CMAKE_INSTALL_${part}}")
    set(pc_${part} "${CMAKE_INSTALL_${part}}")
  endif()
endforeach()
foreach(name lagkv lagkv-kernels lagkv-c)
  configure_file(cmake/${name}.pc.in ${PROJECT_BINARY_DIR}/${name}.pc @ONLY)
endforeach()
install(FILES ${PROJECT_BINARY_DIR}/lagkv.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
if(LAGKV_KERNELS)  # not without the library: a program would not link
  set(to ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  if(NOT IS_ABSOLUTE "${to}")
    set(to "\${CMAKE_INSTALL_PREFIX}/${to}")
  endif()
  install(CODE "if(EXISTS \"$<TARGET_FILE:lagkv_kernels>\")
    file(INSTALL \"${PROJECT_BINARY_DIR}/lagkv-kernels.pc\" DESTINATION \"${to}\")
  endif()")
endif()
if(TARGET lagkv_c)
  install(FILES ${PROJECT_BINARY_DIR}/lagkv-c.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
# In a project that adds this one CMAKE_INSTALL_DOCDIR is that project's folder, with a LICENSE of its own.
set(docs ${CMAKE_INSTALL_DOCDIR})
if(NOT top_level)
  set(docs ${CMAKE_INSTALL_DATAROOTDIR}/doc/lagkv)
endif()
install(FILES LICENSE NOTICE DESTINATION ${docs})
