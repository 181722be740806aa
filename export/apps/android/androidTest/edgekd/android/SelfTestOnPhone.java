package edgekd.android;

import static org.junit.Assert.assertEquals;

import android.content.Context;
import androidx.test.platform.app.InstrumentationRegistry;
import java.util.Collections;
import org.junit.Test;

/** `gradle connectedAndroidTest` on a phone or an emulator: the golden vectors, with onnxruntime behind them. */
public class SelfTestOnPhone {
    @Test
    public void givesItsGoldenOutputs() {
        Context context = InstrumentationRegistry.getInstrumentation().getTargetContext();
        try (AndroidStudent opened = new AndroidStudent(context)) {
            assertEquals(Collections.emptyList(), opened.student().selfTest());
        }
    }
}
