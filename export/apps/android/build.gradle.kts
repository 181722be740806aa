// A library module: `implementation(project(":student"))` in your app, or `gradle assembleRelease` for an .aar.
plugins {
    id("com.android.library") version "8.5.2"
}

android {
    namespace = "edgekd.android"
    compileSdk = 34

    defaultConfig {
        minSdk = 26
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    androidResources {
        noCompress += listOf("onnx", "npz")
    }
    sourceSets {
        getByName("main") {
            manifest.srcFile("AndroidManifest.xml")
            java.setSrcDirs(listOf("java"))
            assets.setSrcDirs(listOf("assets"))
        }
        getByName("androidTest") {
            java.setSrcDirs(listOf("androidTest"))
        }
    }
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.20.0")
    androidTestImplementation("androidx.test:runner:1.6.2")
    androidTestImplementation("androidx.test.ext:junit:1.2.1")
}
